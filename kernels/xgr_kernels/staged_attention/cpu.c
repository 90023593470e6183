/* The attention of beams over their own few tokens, merged with that over their prefixes, in one pass. */

#include <math.h>
#include <stdint.h>

static int64_t at(const int64_t *strides, int64_t row, int64_t head, int64_t member) {
  return row * strides[0] + head * strides[1] + member * strides[2];
}

/* q, scaled, and out: [rows, kv_heads, group, dim]; attended, the attention over the prefixes, and log_totals, its
   log-sum-exps: the same with strides of their own for rows, KV heads and members of a group; suffix_k, suffix_v:
   [steps, slots, kv_heads, dim], a step's stride given; ancestors: [rows, steps], a row's stride given; weights: [steps],
   written over. */
void attend_own(int64_t rows, int64_t kv_heads, int64_t group, int64_t dim, int64_t steps, const float *q,
                const float *attended, const int64_t *attended_strides, const float *log_totals,
                const int64_t *log_total_strides, const float *suffix_k, const float *suffix_v, int64_t step_stride,
                const int32_t *ancestors, int64_t ancestor_stride, float *weights, float *out) {
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t head = 0; head < kv_heads; head++) {
      for (int64_t member = 0; member < group; member++, q += dim, out += dim) {
        const float *over_prefix = attended + at(attended_strides, row, head, member);
        const float log_total = log_totals[at(log_total_strides, row, head, member)];
        float peak = log_total;
        for (int64_t step = 0; step < steps; step++) {
          const int64_t token = (ancestors[row * ancestor_stride + step] * kv_heads + head) * dim;
          const float *key = suffix_k + step * step_stride + token;
          float score = 0;
          for (int64_t i = 0; i < dim; i++) score += q[i] * key[i];
          weights[step] = score;
          if (score > peak) peak = score;
        }
        const float prefix = expf(log_total - peak);
        float total = prefix;
        for (int64_t step = 0; step < steps; step++) total += weights[step] = expf(weights[step] - peak);
        for (int64_t i = 0; i < dim; i++) out[i] = prefix / total * over_prefix[i];
        for (int64_t step = 0; step < steps; step++) {
          const int64_t token = (ancestors[row * ancestor_stride + step] * kv_heads + head) * dim;
          const float *value = suffix_v + step * step_stride + token;
          const float weight = weights[step] / total;
          for (int64_t i = 0; i < dim; i++) out[i] += weight * value[i];
        }
      }
    }
  }
}
