/* Which nodes are legal for a request: those of its mask, less those that its exclusions emptied. */

#include <stdint.h>
#include <stdlib.h>

static int by_value(const void *left, const void *right) {
  int32_t a = *(const int32_t *)left, b = *(const int32_t *)right;
  return (a > b) - (a < b);
}

/* Of `legal`, the request's mask, and its `num_emptied` nodes `emptied`, ascending. */
#define IS_LEGAL(node) \
  (legal[node] && !(num_emptied && bsearch(&(node), emptied, num_emptied, sizeof *emptied, by_value)))
