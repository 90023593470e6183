/* What the next forward needs of the beams just selected. */

#include <stdint.h>
#include <string.h>

/* parents, nodes: [rows]; child_codes, token_ids: the level's; embedding: [vocab], each of row_bytes; row_starts:
   [requests + 1]; prefix_lengths: [requests]; ancestors: [rows before, steps]. Out: descended [rows, steps], positions
   [rows], hidden [rows], each of row_bytes. */
void beam_descend(int64_t rows, int64_t requests, int64_t row_bytes, int64_t steps, int64_t step,
                  const int32_t *parents, const int32_t *nodes, const int32_t *child_codes, const int64_t *token_ids,
                  const char *embedding, const int32_t *row_starts, const int32_t *prefix_lengths,
                  const int32_t *ancestors, int32_t *descended, int64_t *positions, char *hidden) {
  int64_t request = 0;
  for (int64_t row = 0; row < rows; row++, descended += steps, hidden += row_bytes) {
    while (request < requests && row >= row_starts[request + 1]) request++;
    const int real = request < requests;
    memset(descended, 0, steps * sizeof *descended);
    memcpy(descended, ancestors + parents[row] * steps, step * sizeof *descended);
    descended[step] = row;
    positions[row] = real ? prefix_lengths[request] + step : 0;
    const int64_t token = token_ids[child_codes[real && nodes[row] > 0 ? nodes[row] : 0]];
    memcpy(hidden, embedding + token * row_bytes, row_bytes);
  }
}
