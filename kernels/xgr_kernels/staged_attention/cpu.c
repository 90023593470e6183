/* The attention of beams over their own few tokens, merged with that over their prefixes, in one pass. */

#include <math.h>
#include <stdint.h>

/* q, out: [rows, kv_heads, group, dim], of each request `beams` rows; attended, the attention over the prefixes, and
   log_totals, its log-sum-exps: [requests, kv_heads, beams * group], strides given; suffix_k, suffix_v:
   [steps, slots, kv_heads, dim], a step's stride given; ancestors: [rows, steps], a row's stride given; weights:
   [steps], written over. */
void attend_own(int64_t rows, int64_t beams, int64_t kv_heads, int64_t group, int64_t dim, int64_t steps,
                const float *q, float scale, const float *attended, int64_t attended_request, int64_t attended_head,
                int64_t attended_row, const float *log_totals, int64_t log_total_request, int64_t log_total_head,
                int64_t log_total_row, const float *suffix_k, const float *suffix_v, int64_t step_stride,
                const int32_t *ancestors, int64_t ancestor_stride, float *weights, float *out) {
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t head = 0; head < kv_heads; head++) {
      for (int64_t member = 0; member < group; member++, q += dim, out += dim) {
        const int64_t request = row / beams, place = row % beams * group + member;
        const float *over_prefix =
            attended + request * attended_request + head * attended_head + place * attended_row;
        const float log_total =
            log_totals[request * log_total_request + head * log_total_head + place * log_total_row];
        float peak = log_total;
        for (int64_t step = 0; step < steps; step++) {
          const int64_t token = (ancestors[row * ancestor_stride + step] * kv_heads + head) * dim;
          const float *key = suffix_k + step * step_stride + token;
          float score = 0;
          for (int64_t i = 0; i < dim; i++) score += q[i] * key[i];
          weights[step] = score * scale;
          if (weights[step] > peak) peak = weights[step];
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
