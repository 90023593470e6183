/* RMSNorm and rotation of heads, and the scatter of keys and values into their pages. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* norm: [dim], or null for none; cos_sin: [dim], the first half cosines, the second half sines. */
static void turn(const float *head, const float *norm, float eps, const float *cos_sin, int64_t dim, float *out) {
  const int64_t half = dim / 2;
  float scale = 1;
  if (norm != NULL) {
    float squares = 0;
    for (int64_t i = 0; i < dim; i++) squares += head[i] * head[i];
    scale = 1 / sqrtf(squares / dim + eps);
  }
  for (int64_t i = 0; i < half; i++) {
    const float first = head[i] * scale * (norm != NULL ? norm[i] : 1);
    const float second = head[i + half] * scale * (norm != NULL ? norm[i + half] : 1);
    out[i] = first * cos_sin[i] - second * cos_sin[i + half];
    out[i + half] = second * cos_sin[i] + first * cos_sin[i + half];
  }
}

/* q, k, v: [tokens, heads or kv_heads, dim], a token's stride given; cos_sin: [num_positions, dim]; slots: -1 for a
   token that is not written; k_pages, v_pages: [pages, kv_heads, page_size, dim]; out: [tokens, heads, dim]. Nonzero,
   and nothing written, for a position or a slot that is not there. */
int kv_write(int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim, int64_t pages, int64_t page_size,
             int64_t num_positions, const float *q, int64_t q_stride, const float *k, int64_t k_stride, const float *v,
             int64_t v_stride, const int64_t *positions, const int64_t *slots, const float *cos_sin,
             const float *q_norm, const float *k_norm, float eps, float *k_pages, float *v_pages, float *out) {
  for (int64_t token = 0; token < tokens; token++)
    if (positions[token] < 0 || positions[token] >= num_positions || slots[token] >= pages * page_size) return 1;
  for (int64_t token = 0; token < tokens; token++) {
    const float *angles = cos_sin + positions[token] * dim;
    for (int64_t head = 0; head < heads; head++, out += dim)
      turn(q + token * q_stride + head * dim, q_norm, eps, angles, dim, out);
    if (slots[token] < 0) continue;
    const int64_t page = slots[token] / page_size, place = slots[token] % page_size;
    for (int64_t head = 0; head < kv_heads; head++) {
      const int64_t at = ((page * kv_heads + head) * page_size + place) * dim;
      turn(k + token * k_stride + head * dim, k_norm, eps, angles, dim, k_pages + at);
      memcpy(v_pages + at, v + token * v_stride + head * dim, dim * sizeof *v);
    }
  }
  return 0;
}
