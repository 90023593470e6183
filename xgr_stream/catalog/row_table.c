/* Rows by item id, as row_table.py has them: of many ids at a time, so that their cache misses overlap. */

#include <stdint.h>
#include <string.h>

#define BUCKET 8
#define TOGETHER 64

typedef struct {
  const uint64_t *slots, *seeds;
  const char *ids; /* of row r at starts[r] : starts[r + 1] */
  const void *starts;
  int64_t buckets; /* a power of two */
  int64_t num_seeds; /* pairs */
  int64_t wide; /* whether starts are 64 bits, not 32 */
  int64_t length; /* of each id, if that is the same of all: then nothing is looked up in starts; else 0 */
} Table;

static uint64_t half_word(const unsigned char *bytes, int64_t size) {
  uint64_t found = 0;
  for (int64_t i = 0; i < size; i++) found |= (uint64_t)bytes[i] << 8 * i;
  return found;
}

static uint64_t hash_of(const Table *table, const char *id, int64_t length) {
  const unsigned char *bytes = (const unsigned char *)id;
  const uint64_t *seeds = table->seeds, *end = seeds + 2 * table->num_seeds;
  uint64_t own = (uint64_t)length * seeds[0], other = (uint64_t)length * seeds[1];
  for (seeds += 2; seeds < end && length > 0; seeds += 2, bytes += 4, length -= 4) {
    const uint64_t half = length >= 4 ? half_word(bytes, 4) : half_word(bytes, length);
    own += half * seeds[0], other += half * seeds[1];
  }
  return own >> 32 << 32 | other >> 32;
}

static int64_t start(const Table *table, int64_t row) {
  if (table->length) return row * table->length;
  return table->wide ? ((const int64_t *)table->starts)[row] : ((const uint32_t *)table->starts)[row];
}

static int is_at(const Table *table, int64_t row, const char *id, int64_t length) {
  const int64_t own = start(table, row);
  const char *other = table->ids + own;
  uint64_t word, others;
  if (start(table, row + 1) - own != length) return 0;
  for (; length >= 8; length -= 8, id += 8, other += 8) { /* of so few sooner than memcmp */
    memcpy(&word, id, 8), memcpy(&others, other, 8);
    if (word != others) return 0;
  }
  while (length > 0 && *id == *other) length--, id++, other++;
  return length == 0;
}

/* Which slot is the `tried`-th to look at. */
static uint64_t slot_of(const Table *table, uint64_t hash, uint64_t tried) {
  const uint64_t bucket = (hash + tried / BUCKET) & (uint64_t)(table->buckets - 1);
  return bucket * BUCKET + ((hash >> 61) + tried) % BUCKET;
}

/* The row in the next slot that has the hash's upper half; -1: there is none before a slot that is free, and what was put
   in found none free before its own. */
static int64_t candidate(const Table *table, uint64_t hash, uint64_t *tried) {
  for (;;) {
    const uint64_t slot = table->slots[slot_of(table, hash, (*tried)++)];
    if (slot == 0) return -1;
    if ((slot ^ hash) >> 32 == 0) return (int64_t)(slot & 0xFFFFFFFF) - 1;
  }
}

/* rows[i], of i from first to end: the row of ids[i], -1 where it is not there. ids: a list; item: PyList_GetItem; utf8:
   PyUnicode_AsUTF8AndSize. Returns early, with Python's exception set, at what is no id in UTF-8. */
void find_rows(void *(*item)(void *, intptr_t), const char *(*utf8)(void *, intptr_t *), const Table *table, void *ids,
               intptr_t first, intptr_t end, int32_t *rows) {
  void *strings[TOGETHER];
  const char *texts[TOGETHER];
  intptr_t lengths[TOGETHER];
  uint64_t hashes[TOGETHER], tried[TOGETHER];
  int64_t found[TOGETHER];
  for (; first < end; first += TOGETHER) {
    const int size = end - first < TOGETHER ? (int)(end - first) : TOGETHER;
    for (int i = 0; i < size; i++) {
      strings[i] = item(ids, first + i);
      __builtin_prefetch(strings[i]);
      __builtin_prefetch((const char *)strings[i] + 56); /* its text begins behind 40 or 48 bytes */
    }
    for (int i = 0; i < size; i++) {
      if (strings[i] == NULL || (texts[i] = utf8(strings[i], &lengths[i])) == NULL) return;
      hashes[i] = hash_of(table, texts[i], lengths[i]);
      __builtin_prefetch(table->slots + slot_of(table, hashes[i], 0));
    }
    for (int i = 0; i < size; i++) {
      tried[i] = 0;
      found[i] = candidate(table, hashes[i], &tried[i]);
      if (found[i] >= 0 && !table->length)
        __builtin_prefetch((const char *)table->starts + found[i] * (table->wide ? 8 : 4));
    }
    for (int i = 0; i < size; i++)
      if (found[i] >= 0) __builtin_prefetch(table->ids + start(table, found[i]));
    for (int i = 0; i < size; i++) {
      while (found[i] >= 0 && !is_at(table, found[i], texts[i], lengths[i]))
        found[i] = candidate(table, hashes[i], &tried[i]);
      rows[first + i] = (int32_t)found[i];
    }
  }
}
