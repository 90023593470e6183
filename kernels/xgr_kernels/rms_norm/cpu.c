/* RMSNorm of rows, of their sum with a residual where there is one. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* x: [rows, size], a row's stride given; residual, summed: [rows, size], or null; weight: [size]; out: [rows, size]. */
void rms_norm(int64_t rows, int64_t size, const float *x, int64_t row_stride, const float *residual,
              const float *weight, float eps, float *summed, float *out) {
  for (int64_t row = 0; row < rows; row++, x += row_stride, out += size) {
    const float *values = x;
    float squares = 0;
    if (residual != NULL) {
      for (int64_t i = 0; i < size; i++) {
        summed[i] = x[i] + residual[i];
        squares += summed[i] * summed[i];
      }
      values = summed;
      residual += size;
      summed += size;
    } else {
      for (int64_t i = 0; i < size; i++) squares += x[i] * x[i];
    }
    const float scale = 1 / sqrtf(squares / size + eps);
    for (int64_t i = 0; i < size; i++) out[i] = values[i] * scale * weight[i];
  }
}
