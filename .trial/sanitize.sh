export PYTORCH_NO_CUDA_MEMORY_CACHING=0
mkdir -p /tmp/san
ops=$(ls -d kernels/xgr_kernels/*/bench.py | xargs -n1 dirname | xargs -n1 basename)
for tool in memcheck racecheck; do
 for op in $ops; do
  if [ "$tool $op" = "racecheck beam_select" ]; then cmd="python3 -m pytest -q -p no:cacheprovider tests/gpu/test_beam_select.py -k $1";
  else cmd="python3 -c 'from xgr_kernels.$op import bench; bench.check()'"; fi
  (s=$(date +%s); eval timeout $2 compute-sanitizer --tool $tool --kernel-name-exclude kns=at6native $cmd > /tmp/san/$tool-$op 2>&1; echo "$tool $op rc $? $(($(date +%s)-s)) s: $(grep -E '^=+ (ERROR|RACECHECK|Internal|Error)|SUMMARY' /tmp/san/$tool-$op | tail -2 | tr '\n' ' ')" ) &
 done
done
wait
