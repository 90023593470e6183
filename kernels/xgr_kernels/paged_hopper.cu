// Attention over pages on Hopper's matrix units: paged.py's attend_kernel for head size 128 in 16 bits.
//
// As FlashAttention-3 (Shah et al., 2024) has it: a block takes 128 rows at a time. One warp fetches tiles of 128 keys and
// values by the copy engine, three ahead; two warpgroups of 64 rows each multiply. While the product of a tile's weights and
// values is under way a warpgroup takes the softmax of the next tile's scores, and the two take turns at the matrix units.
// Tiles come last one first, so that those that must be masked come before the loop. There are as many blocks as
// multiprocessors, so that the next item's keys are there when the one before is done.
//
// Compiled with DTYPE (bf16 or f16), GROUP (query heads of a KV head), PAGE_SIZE (a multiple of 64), CAUSAL (0 or 1),
// OUT_FP8 (0 or 1) and CALL_BYTES.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

#define QUOTED(x) #x
#define NAME(x) QUOTED(x)

struct alignas(64) TensorMap {
  unsigned char opaque[128];
};

struct Item {  // attention_plan.py: Plan.items
  int first_row, last_row, tile, request, first, stop, parts, distance;
};

struct Call {  // paged_hopper.py: Call
  TensorMap k_pages, v_pages;
  void *out;
  u16 *partial;
  float *log_totals;
  const Item *items;
  const u16 *q;
  const int *page_table, *lengths;
  const u16 *suffix_k, *suffix_v;
  const int *ancestors;
  const float *out_scales;  // [kv_heads], if OUT_FP8: what each head's results are divided by
  int work, kv_heads, steps, table_stride, q_stride, head_stride, step_stride, suffix_stride, ancestors_stride, settled;
  float scale;
};
static_assert(sizeof(Call) == CALL_BYTES, "paged_hopper.py has another Call");

// The ring of tiles that are fetched: where the next one is, and the parity of its barriers.
struct Slot {
  int at = 0;
  u32 parity = 0;
  __device__ __forceinline__ void next();
};

constexpr int ROWS = 128, KEYS = 128, DIM = 128, STAGES = 3, CONSUMERS = 8 /* warps */;
constexpr u32 TILE = KEYS * DIM * 2, HALF = TILE / 2, PAGE_PART = 64 * 128, QUERIES = 64 * DIM * 2;  // bytes
constexpr u32 KEYS_AT = 2 * QUERIES, VALUES_AT = KEYS_AT + STAGES * TILE, BARRIERS_AT = VALUES_AT + STAGES * TILE;
constexpr float NEVER = -1e30f;
#define NOTHING __int_as_float(0xff800000)  // minus infinity

__device__ __forceinline__ void Slot::next() {
  if (++at == STAGES) at = 0, parity ^= 1;
}

__device__ __forceinline__ void barrier_init(u32 barrier, u32 count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count));
}
__device__ __forceinline__ void expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void wait(u32 barrier, u32 parity) {
  asm volatile(
      "{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n@!p bra AGAIN;\n}"
      ::"r"(barrier), "r"(parity) : "memory");
}
// Named barriers of the two multiplying warpgroups: 1 and 2 hold one of them together, 3 and 4 say whose turn it is.
__device__ __forceinline__ void sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void hand_on(int id) { asm volatile("bar.arrive %0, 256;" ::"r"(id) : "memory"); }

__device__ __forceinline__ void wait_for_kernels_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void let_next_kernel_begin() { asm volatile("griddepcontrol.launch_dependents;"); }
// What ordinary stores wrote to shared memory is there for the matrix units and the copy engine.
__device__ __forceinline__ void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// 64 rows of half a head: 64 rows of 128 bytes, swizzled.
__device__ __forceinline__ void fetch(const TensorMap *map, u32 barrier, u32 to, int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
      ::"r"(to), "l"(map), "r"(barrier), "r"(column), "r"(row) : "memory");
}
// A matrix in shared memory, swizzled by 128 bytes: strides in bytes between its blocks of 8 rows, and of 64 columns.
template <u32 COLUMNS, u32 EIGHT_ROWS> __device__ __forceinline__ u64 matrix(u32 at) {
  return (u64)((at & 0x3FFFF) >> 4) | (u64)(COLUMNS >> 4) << 16 | (u64)(EIGHT_ROWS >> 4) << 32 | (u64)1 << 62;
}
__device__ __forceinline__ uint4 load_shared(u32 at) {
  uint4 x;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(at));
  return x;
}
__device__ __forceinline__ void store_shared(u32 at, uint4 x) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}

__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> __device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
// The compiler is not to move what reads or makes these across what follows.
__device__ __forceinline__ void settle(float (&d)[64]) {
#pragma unroll
  for (int i = 0; i < 64; i++) asm volatile("" : "+f"(d[i])::"memory");
}

#define SUMS                                                                                                           \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "    \
  "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "     \
  "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define FOUR(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIXTEEN(d, i) FOUR(d, i), FOUR(d, i + 4), FOUR(d, i + 8), FOUR(d, i + 12)
#define SIXTY_FOUR(d) SIXTEEN(d, 0), SIXTEEN(d, 16), SIXTEEN(d, 32), SIXTEEN(d, 48)
#define PRODUCT "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME(DTYPE) "." NAME(DTYPE) " "

// d [64, 128] (+)= a [64, 16] b [128, 16]^T
__device__ __forceinline__ void multiply(float (&d)[64], u64 a, u64 b, int add) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n" PRODUCT SUMS ", %64, %65, p, 1, 1, 0, 0;\n}"
               : SIXTY_FOUR(d) : "l"(a), "l"(b), "r"(add));
}
// d [64, 128] += a [64, 16] b [16, 128]; a in registers
__device__ __forceinline__ void multiply(float (&d)[64], const u32 *a, u64 b) {
  asm volatile(PRODUCT SUMS ", {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
               : SIXTY_FOUR(d) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ float power(float x) {  // of two; volatile: a softmax must not be put off to where it is used
  float y;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ u32 pack(float low, float high) {
  u32 d;
  asm("cvt.rn." NAME(DTYPE) "x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
// Two results in FP8.
__device__ __forceinline__ u16 pack_fp8(float low, float high) {
  u16 d;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(d) : "f"(high), "f"(low));
  return d;
}
struct bf16 {
  static __device__ __forceinline__ float low(u32 x) { return __uint_as_float(x << 16); }
  static __device__ __forceinline__ float high(u32 x) { return __uint_as_float(x & 0xFFFF0000u); }
};
struct f16 {
  static __device__ __forceinline__ float low(u32 x) {
    float y;
    asm("{.reg .b16 a, b;\nmov.b32 {a, b}, %1;\ncvt.f32.f16 %0, a;}" : "=f"(y) : "r"(x));
    return y;
  }
  static __device__ __forceinline__ float high(u32 x) { return low(x >> 16); }
};
__device__ __forceinline__ float dot(u32 a, u32 b) { return DTYPE::low(a) * DTYPE::low(b) + DTYPE::high(a) * DTYPE::high(b); }
__device__ __forceinline__ float dot(uint4 a, uint4 b) { return dot(a.x, b.x) + dot(a.y, b.y) + dot(a.z, b.z) + dot(a.w, b.w); }
__device__ __forceinline__ float over_quad(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}
// Where 16 bytes of a row of queries lie: two halves of 64 rows of 128 bytes, swizzled.
__device__ __forceinline__ u32 query_at(u32 queries, int row, int chunk) {
  return queries + chunk / 8 * (QUERIES / 2) + row * 128 + (chunk % 8 ^ row % 8) * 16;
}

// This block's items: forth in one round of the blocks and back in the next, since the work is sorted, longest first.
__device__ __forceinline__ int place(int round) {
  return round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
}
__device__ __forceinline__ int tiles_of(const Item &item) { return (item.stop - item.first + KEYS - 1) / KEYS; }

struct Barriers {
  u32 keys_there, values_there, keys_done, values_done, values_to_cut;
  __device__ explicit Barriers(u32 at)
      : keys_there(at), values_there(at + 8 * STAGES), keys_done(at + 16 * STAGES), values_done(at + 24 * STAGES),
        values_to_cut(at + 32 * STAGES) {}
};

// One warp's part: keys and values of all items, tile by tile.
__device__ __forceinline__ void fetch_items(const Call &call, u32 shared, const Barriers &barriers) {
  const int lane = threadIdx.x, kv_heads = call.kv_heads;
  Slot slot;
  u32 cuts = 0;
  for (int round = 0; round * gridDim.x < call.work; round++) {
    if (place(round) >= call.work) continue;
    const int kv_head = place(round) % kv_heads;
    const Item item = call.items[place(round) / kv_heads];
    if (item.request < 0) continue;
    const int *table = call.page_table + (long long)item.request * call.table_stride;
    int block = -1, page = 0;  // each lane has the page of one of 32 halves of tiles
    for (int tile = tiles_of(item) - 1; tile >= 0; tile--, slot.next()) {
      if (tile / 16 != block) {
        block = tile / 16;
        const int n = item.first + block * 16 * KEYS + lane * 64;
        page = n < item.stop ? table[n / PAGE_SIZE] : 0;
      }
      const int n = item.first + tile * KEYS;
      const int left = __shfl_sync(~0u, page, tile % 16 * 2), right = __shfl_sync(~0u, page, tile % 16 * 2 + 1);
      const int row = (left * kv_heads + kv_head) * PAGE_SIZE + n % PAGE_SIZE;
      // Of a half that is not there any keys will do.
      const int row_too = n + 64 < item.stop ? (right * kv_heads + kv_head) * PAGE_SIZE + (n + 64) % PAGE_SIZE : row;
      auto fetch_tile = [&](const TensorMap *map, u32 barrier, u32 to) {
        if (lane == 0) {
          expect(barrier, TILE);
          fetch(map, barrier, to, 0, row);
          fetch(map, barrier, to + PAGE_PART, 0, row_too);
          fetch(map, barrier, to + HALF, 64, row);
          fetch(map, barrier, to + HALF + PAGE_PART, 64, row_too);
        }
      };
      wait(barriers.keys_done + 8 * slot.at, slot.parity ^ 1);
      fetch_tile(&call.k_pages, barriers.keys_there + 8 * slot.at, shared + KEYS_AT + slot.at * TILE);
      wait(barriers.values_done + 8 * slot.at, slot.parity ^ 1);
      const u32 values = shared + VALUES_AT + slot.at * TILE, there = barriers.values_there + 8 * slot.at;
      const bool cut = n + KEYS > item.stop;
      fetch_tile(&call.v_pages, cut ? barriers.values_to_cut : there, values);
      if (cut) {  // unwritten memory may hold NaN, and 0 * NaN is NaN
        wait(barriers.values_to_cut, cuts++ & 1);
        for (int c = (item.stop - n) * 8 + lane; c < KEYS * 8; c += 32) {
          store_shared(values + c * 16, make_uint4(0, 0, 0, 0));
          store_shared(values + HALF + c * 16, make_uint4(0, 0, 0, 0));
        }
        publish();
        __syncwarp();
        if (lane == 0) arrive(there);
      }
    }
  }
}

// The online softmax, in base 2, of two of a tile's rows: those that a thread shares with the other three of its quad.
struct Softmax {
  float sums[64] = {}, peak[2] = {NEVER, NEVER}, total[2] = {};  // total: the thread's part of it
};

// Rows of_thread and of_thread + 8 of this warpgroup over their beams' own tokens, two at a time.
__device__ __forceinline__ void attend_suffix(
    Softmax &state, const Call &call, const Item &item, int kv_head, u32 queries, int m_first, int of_thread) {
  const int quad = threadIdx.x % 4;
  for (int first = 0; first < call.steps; first += 2) {
    uint4 keys[4][4];
    u32 values[4][16];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int step = min(first + j / 2, call.steps - 1);
      const int row = item.first_row + (m_first + of_thread + j % 2 * 8) / GROUP;
      const int ancestor = row < item.last_row ? call.ancestors[(long long)row * call.ancestors_stride + step] : 0;
      const long long at = (long long)step * call.step_stride + (long long)ancestor * call.suffix_stride + kv_head * DIM;
#pragma unroll
      for (int i = 0; i < 4; i++) keys[j][i] = *(const uint4 *)(call.suffix_k + at + quad * 32 + i * 8);
#pragma unroll
      for (int i = 0; i < 16; i++) values[j][i] = *(const u32 *)(call.suffix_v + at + i * 8 + quad * 2);
    }
    float score[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      float product = 0.f;
#pragma unroll
      for (int i = 0; i < 4; i++)
        product += dot(load_shared(query_at(queries, of_thread + j % 2 * 8, quad * 4 + i)), keys[j][i]);
      product = over_quad(product);
      score[j] = first + j / 2 < call.steps ? product * call.scale : NOTHING;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float now = fmaxf(state.peak[half], fmaxf(score[half], score[half + 2])), less = power(state.peak[half] - now);
      const float one = power(score[half] - now), two = power(score[half + 2] - now);
#pragma unroll
      for (int i = 0; i < 16; i++) {
        float &a = state.sums[i * 4 + half * 2], &b = state.sums[i * 4 + half * 2 + 1];
        a = a * less + one * DTYPE::low(values[half][i]) + two * DTYPE::low(values[half + 2][i]);
        b = b * less + one * DTYPE::high(values[half][i]) + two * DTYPE::high(values[half + 2][i]);
      }
      state.total[half] = state.total[half] * less + (quad == 0 ? one + two : 0.f);
      state.peak[half] = now;
    }
  }
}

// The same rows over the item's `tiles` of keys, as they come into the ring from `slot` on.
__device__ __forceinline__ void attend_tiles(
    Softmax &state, Slot &slot, const Call &call, const Item &item, u32 shared, const Barriers &barriers, u32 queries,
    int own, int m_first, int of_thread) {
  const int tiles = tiles_of(item), lane = threadIdx.x % 32, quad = lane % 4;
  const float scale = call.scale;
  // How many keys of the item each row sees; tiles from `whole` on must be masked.
  int sees[2] = {item.stop - item.first, item.stop - item.first}, whole = (item.stop - item.first) / KEYS;
  if (CAUSAL) {
    const int before = call.lengths[item.request] - (item.last_row - item.first_row) - item.first;
#pragma unroll
    for (int half = 0; half < 2; half++)
      sees[half] = min(sees[half], before + (m_first + of_thread + half * 8) / GROUP + 1);
    whole = min(whole, max(before + m_first / GROUP + 1, 0) / KEYS);
  }
  const u64 query = matrix<16, 1024>(queries), key = matrix<16, 1024>(shared + KEYS_AT),
            value = matrix<HALF, 1024>(shared + VALUES_AT);
  float scores[64], shrink[2];
  u32 weights[32];
  auto start_scores = [&] {
    const u64 keys = key + slot.at * (TILE >> 4);
#pragma unroll
    for (int j = 0; j < 8; j++)
      multiply(scores, query + j / 4 * (QUERIES / 2 >> 4) + j % 4 * 2, keys + j / 4 * (HALF >> 4) + j % 4 * 2, j > 0);
    products_end();
  };
  auto start_sums = [&](int at) {
    const u64 values = value + at * (TILE >> 4);
#pragma unroll
    for (int j = 0; j < 8; j++) multiply(state.sums, weights + 4 * j, values + j * (16 * 128 >> 4));
    products_end();
  };
  auto mask = [&](int tile) {
#pragma unroll
    for (int j = 0; j < 64; j++)
      if (tile * KEYS + j / 4 * 8 + quad * 2 + j % 2 >= sees[j / 2 % 2]) scores[j] = NOTHING;
  };
  auto soften = [&] {  // scores become weights, not rounded yet
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float most = scores[half * 2];
#pragma unroll
      for (int j = 0; j < 16; j++) most = fmaxf(most, fmaxf(scores[j * 4 + half * 2], scores[j * 4 + half * 2 + 1]));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      const float now = fmaxf(state.peak[half], most * scale);
      shrink[half] = power(state.peak[half] - now);
      state.peak[half] = now;
      float sum = 0.f;
#pragma unroll
      for (int j = 0; j < 16; j++) {
        float &a = scores[j * 4 + half * 2], &b = scores[j * 4 + half * 2 + 1];
        a = power(fmaf(a, scale, -now));
        b = power(fmaf(b, scale, -now));
        sum += a + b;
      }
      state.total[half] = state.total[half] * shrink[half] + sum;
    }
  };
  auto round_weights = [&] {  // results of products lie as their operands do
#pragma unroll
    for (int j = 0; j < 32; j++) weights[j] = pack(scores[2 * j], scores[2 * j + 1]);
  };
  auto rescale = [&] {
#pragma unroll
    for (int j = 0; j < 64; j++) state.sums[j] *= shrink[j / 2 % 2];
  };
  auto release = [&](u32 barrier) {
    if (lane == 0) arrive(barrier);
  };
  const int turn = 3 + own, others_turn = 4 - own;
  auto step = [&](int tile, bool masked) {
    const int before = slot.at;
    slot.next();
    wait(barriers.keys_there + 8 * slot.at, slot.parity);
    sync(turn, 256);
    products_begin();
    start_scores();
    rescale();
    products_begin();
    start_sums(before);
    hand_on(others_turn);
    wait_for_products<1>();
    settle(scores);
    release(barriers.keys_done + 8 * slot.at);
    if (masked) mask(tile);
    soften();
    settle(scores);
    // Not needed yet, but it ends a basic block: the assembler would put off the softmax behind the products' end.
    wait(barriers.values_there + 8 * slot.at, slot.parity);
    wait_for_products<0>();
    settle(state.sums);
    release(barriers.values_done + 8 * before);
    round_weights();
  };

  int tile = tiles - 1;
  wait(barriers.keys_there + 8 * slot.at, slot.parity);
  sync(turn, 256);
  products_begin();
  start_scores();
  hand_on(others_turn);
  wait_for_products<0>();
  settle(scores);
  release(barriers.keys_done + 8 * slot.at);
  if (tile >= whole) mask(tile);
  soften();
  round_weights();
  wait(barriers.values_there + 8 * slot.at, slot.parity);
  tile--;
  if (CAUSAL)
    for (; tile >= whole; tile--) step(tile, true);
  for (; tile >= 0; tile--) step(tile, false);
  rescale();
  products_begin();
  start_sums(slot.at);
  wait_for_products<0>();
  settle(state.sums);
  release(barriers.values_done + 8 * slot.at);
  slot.next();
}

// Results to where the item says, through the queries' place, so that whole lines are written. `Bytes` of a number.
template <int Bytes>
__device__ __forceinline__ void write(
    Softmax &state, const Call &call, const Item &item, int which, int kv_head, u32 queries, int own, int m_first,
    int of_thread) {
  const int thread = threadIdx.x % 128, quad = thread % 4;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float all = over_quad(state.total[half]);
    float factor = all > 0.f ? 1.f / all : 1.f;
    if (Bytes == 1) factor /= call.out_scales[kv_head];
    const int r = of_thread + half * 8;
#pragma unroll
    for (int j = 0; j < 16; j++) {
      const float a = state.sums[j * 4 + half * 2] * factor, b = state.sums[j * 4 + half * 2 + 1] * factor;
      if (Bytes == 1)
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(query_at(queries, r, j / 2) + j % 2 * 8 + quad * 2), "h"(pack_fp8(a, b)) : "memory");
      else
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(query_at(queries, r, j) + quad * 4), "r"(pack(a, b)) : "memory");
    }
    if (item.parts > 1 && quad == 0)
      call.log_totals[((long long)which * call.kv_heads + kv_head) * ROWS + own * 64 + r] =
          all > 0.f ? state.peak[half] + log2f(all) : NOTHING;
  }
  sync(1 + own, 128);
  constexpr int CHUNKS = DIM * Bytes / 16;
#pragma unroll
  for (int i = 0; i < CHUNKS / 2; i++) {
    const int c = thread + 128 * i, r = c / CHUNKS, m = m_first + r, row = item.first_row + m / GROUP;
    if (row < item.last_row) {
      const long long at = item.parts == 1 ? (long long)row * call.kv_heads * GROUP + kv_head * GROUP + m % GROUP
                                           : ((long long)which * call.kv_heads + kv_head) * ROWS + own * 64 + r;
      char *to = (char *)(item.parts == 1 ? call.out : call.partial) + at * DIM * Bytes;
      *(uint4 *)(to + c % CHUNKS * 16) = load_shared(query_at(queries, r, c % CHUNKS));
    }
  }
}

extern "C" __global__ void __launch_bounds__(384, 1) attend(const __grid_constant__ Call call) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const u32 shared = (u32)__cvta_generic_to_shared(memory);
  const Barriers barriers(shared + BARRIERS_AT);
  const int warpgroup = threadIdx.x / 128;
  // Beams' prefixes were complete before the kernels that this launch depends on, so their copies begin before it waits;
  // of a forward's new tokens keys and values were just written.
  const bool early = call.settled && !CAUSAL;
  if (!early) {
    wait_for_kernels_before();
    let_next_kernel_begin();
  }
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(barriers.keys_there + 8 * i, 1);
      barrier_init(barriers.values_there + 8 * i, 1);
      barrier_init(barriers.keys_done + 8 * i, CONSUMERS);
      barrier_init(barriers.values_done + 8 * i, CONSUMERS);
    }
    barrier_init(barriers.values_to_cut, 1);
    publish();
  }
  __syncthreads();
  if (warpgroup == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x < 32) fetch_items(call, shared, barriers);
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  const int own = warpgroup - 1, thread = threadIdx.x % 128, of_thread = thread / 32 * 16 + thread % 32 / 4;
  if (early) {
    wait_for_kernels_before();
    let_next_kernel_begin();
  }
  const u32 queries = shared + own * QUERIES;
  Slot slot;
  if (own == 1) hand_on(3);
  for (int round = 0; round * gridDim.x < call.work; round++) {
    if (place(round) >= call.work) continue;
    const int kv_head = place(round) % call.kv_heads, which = place(round) / call.kv_heads;
    const Item item = call.items[which];
    if (item.request < 0) continue;
    // Row m of the tile is query head m % GROUP of beam, or token, m / GROUP; this warpgroup's begin at m_first.
    const int m_first = item.tile * ROWS + own * 64;
    if (round) sync(1 + own, 128);  // what was written last has been read
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int c = thread + 128 * i, r = c / 16, m = m_first + r, row = item.first_row + m / GROUP;
      const u16 *from = call.q + (long long)row * call.q_stride + (kv_head * GROUP + m % GROUP) * call.head_stride;
      store_shared(query_at(queries, r, c % 16),
                   row < item.last_row ? *(const uint4 *)(from + c % 16 * 8) : make_uint4(0, 0, 0, 0));
    }
    publish();
    sync(1 + own, 128);
    Softmax state;
    if (!CAUSAL && item.parts == 1)  // with parts the merge does it
      attend_suffix(state, call, item, kv_head, queries, m_first, of_thread);
    if (item.stop > item.first)
      attend_tiles(state, slot, call, item, shared, barriers, queries, own, m_first, of_thread);
    if (OUT_FP8 && item.parts == 1)
      write<1>(state, call, item, which, kv_head, queries, own, m_first, of_thread);
    else
      write<2>(state, call, item, which, kv_head, queries, own, m_first, of_thread);
  }
}
