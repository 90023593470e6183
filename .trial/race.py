import sys, torch
torch.manual_seed(0)
what = sys.argv[1]
if what == "staged":
    from xgr_kernels.staged_attention import bench
    for fp8 in (False, True):
        print(bench.error([200, 77], torch.bfloat16, beams=128, fp8=fp8))
if what == "append":
    from xgr_kernels.append_attention import bench
    for fp8 in (False, True):
        print(bench.error([3, 1, 140], [197, 5, 60], torch.bfloat16, fp8=fp8))
if what == "gate":
    from xgr_kernels.gate_up_silu import gate_up_silu
    from xgr_kernels.gate_up_silu.reference import gate_up_silu as reference
    x, w = torch.randn(130, 256, dtype=torch.bfloat16, device="cuda"), torch.randn(1024, 256, dtype=torch.bfloat16, device="cuda") / 16
    want = reference(x.float(), w.float()); print(float((gate_up_silu(x, w).float() - want).norm() / want.norm()))
if what == "legal":
    from xgr_kernels.legal_normalizer import bench
    from xgr_kernels.legal_normalizer.kernel import legal_normalizer
    level = bench.arguments(bench.trie("183"), 1.0, requests=1, beams=64)
    for call in (bench.of_level(level), bench.of_level(level, shared=20)):
        print(float(legal_normalizer(**call).sum()))
if what == "select":
    from xgr_kernels.beam_select import bench
    from xgr_kernels.beam_select.kernel import beam_select
    for children in ("one", "183"):
        print([t.shape for t in beam_select(**bench.arguments(bench.trie(children), 1.0, requests=1, beams=64))])
