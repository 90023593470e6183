/* beam_select: each request's live beams in the order of their bounds, their legal children into a heap of the width
   best, until no bound reaches the worst of these. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "../legality.h"

typedef struct {
  float score;
  int32_t row, node;
} Candidate;

typedef struct {
  float bound;
  int32_t row;
} Beam;

static int worse(const Candidate *a, const Candidate *b) {
  return a->score < b->score || (a->score == b->score && a->node > b->node);
}

/* The worst candidate is heap[0]; put `own` where heap[i] was. */
static void sift_down(Candidate *heap, int64_t size, Candidate own) {
  int64_t i = 0, below;
  while ((below = 2 * i + 1) < size) {
    if (below + 1 < size && worse(&heap[below + 1], &heap[below])) below++;
    if (!worse(&heap[below], &own)) break;
    heap[i] = heap[below];
    i = below;
  }
  heap[i] = own;
}

static void sift_up(Candidate *heap, int64_t i, Candidate own) {
  while (i && worse(&own, &heap[(i - 1) / 2])) {
    heap[i] = heap[(i - 1) / 2];
    i = (i - 1) / 2;
  }
  heap[i] = own;
}

static int by_bound(const void *left, const void *right) {
  const Beam *a = left, *b = right;
  return a->bound > b->bound ? -1 : a->bound < b->bound ? 1 : a->row - b->row;
}

/* What a row's candidates have beside their logits. */
#define OFFSET(row) (log_normalizer ? scores[row] - log_normalizer[row] : scores[row])

/* log_normalizer: [rows], or null for none. Returns 0, or 1 without memory. */
int beam_select(int64_t requests, int64_t codes, const float *logits, int64_t row_stride,
                const float *log_normalizer, const float *scores, const int32_t *nodes, const int32_t *row_starts, const int32_t *out_starts,
                const int32_t *child_starts, const int32_t *child_codes, const uint8_t *node_masks, int64_t children,
                const int32_t *mask_index, const int32_t *emptied_starts, const int32_t *emptied_nodes, int early_stop,
                float *out_scores, int32_t *out_parents, int32_t *out_nodes, int32_t *beams_scanned,
                int32_t *children_kept) {
  int64_t most_rows = 0, most_out = 0;
  for (int64_t request = 0; request < requests; request++) {
    int64_t rows = row_starts[request + 1] - row_starts[request], out = out_starts[request + 1] - out_starts[request];
    if (rows > most_rows) most_rows = rows;
    if (out > most_out) most_out = out;
  }
  Candidate *heap = malloc((most_out + 1) * sizeof *heap);
  Beam *beams = malloc((most_rows + 1) * sizeof *beams);
  if (!heap || !beams) {
    free(heap);
    free(beams);
    return 1;
  }
  for (int64_t request = 0; request < requests; request++) {
    const int64_t first_out = out_starts[request], width = out_starts[request + 1] - first_out;
    const uint8_t *legal = node_masks + (int64_t)mask_index[request] * children;
    const int32_t *emptied = emptied_nodes + emptied_starts[request];
    const int64_t num_emptied = emptied_starts[request + 1] - emptied_starts[request];
    int64_t alive = 0, size = 0, scanned = 0, kept = 0;
    for (int32_t row = row_starts[request]; row < row_starts[request + 1]; row++) {
      if (scores[row] == -INFINITY) continue;
      const float *own = logits + row * row_stride;
      float best = own[0];
      for (int64_t code = 1; code < codes; code++) best = own[code] > best ? own[code] : best;
      beams[alive++] = (Beam){best + OFFSET(row), row};
    }
    qsort(beams, alive, sizeof *beams, by_bound);
    for (int64_t i = 0; i < alive; i++) {
      if (early_stop && size == width && (!width || beams[i].bound < heap[0].score)) break;
      const int32_t row = beams[i].row, first = child_starts[nodes[row]], end = child_starts[nodes[row] + 1];
      const float *own = logits + row * row_stride;
      const float offset = OFFSET(row);
      scanned++;
      for (int32_t node = first; node < end; node++) {
        if (!IS_LEGAL(node)) continue;
        Candidate candidate = {own[child_codes[node]] + offset, row, node};
        if (size < width) {
          sift_up(heap, size++, candidate);
        } else if (width && worse(&heap[0], &candidate)) {
          sift_down(heap, size, candidate);
        } else if (early_stop) {
          continue;
        }
        kept++;
      }
    }
    for (int64_t place = size; place < width; place++) {
      out_scores[first_out + place] = -INFINITY;
      out_parents[first_out + place] = row_starts[request];
      out_nodes[first_out + place] = -1;
    }
    while (size) {
      const Candidate worst = heap[0];
      size--;
      out_scores[first_out + size] = worst.score;
      out_parents[first_out + size] = worst.row;
      out_nodes[first_out + size] = worst.node;
      if (size) sift_down(heap, size, heap[size]);
    }
    beams_scanned[request] = scanned;
    children_kept[request] = kept;
  }
  free(heap);
  free(beams);
  return 0;
}
