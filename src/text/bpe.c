#include "text/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "text/utf8.h"

enum {
  SHORT_CODES = 0x300, /* code points whose symbol is found by index: ASCII and the alphabet of byte-level tokenizers */
  SEAM_BITS = 1 << 20,
  CACHED_SYMBOLS = 14,
};

typedef struct merge {
  uint64_t pair; /* left << 32 | right; UINT64_MAX: free */
  int32_t rank, id;
} merge;

struct kf_bpe {
  const kf_vocab *vocab;
  merge *merges; /* [merge_mask + 1] open addressing */
  uint32_t merge_mask;
  int32_t short_symbol[SHORT_CODES]; /* -1: not in the vocabulary */
  int32_t byte_symbol[256];          /* <0xNN> */
  bool byte_fallback, ignore_merges, fuse_unk;
  int32_t unk; /* -1: none; unknown characters are dropped */
  /* Bit of (x, y): some merge joins a token that ends in symbol x with one that starts with symbol y. Where the bit is 0
   * nothing ever merges across, so a word is cut there exactly; a bit that is 1 by a hash collision only costs time. */
  uint64_t seam[SEAM_BITS / 64];
};

/* ------------------------------------------------------------------------------------------------ reading */

static uint32_t mix(uint64_t pair) {
  pair *= 0x9e3779b97f4a7c15u;
  return (uint32_t)(pair >> 32);
}

static uint64_t pair_of(int32_t left, int32_t right) {
  return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static merge *find_merge(const kf_bpe *b, uint64_t pair) {
  uint32_t i = mix(pair) & b->merge_mask;
  while (b->merges[i].pair != UINT64_MAX && b->merges[i].pair != pair) i = (i + 1) & b->merge_mask;
  return &b->merges[i];
}

static bool may_join(const kf_bpe *b, int32_t left, int32_t right) {
  uint32_t bit = mix(pair_of(left, right)) & (SEAM_BITS - 1);
  return b->seam[bit / 64] >> bit % 64 & 1;
}

static bool is_unspelled(const kf_bpe *b, int32_t id) {
  if (id == b->unk) return true;
  for (int i = 0; i < 256; i++)
    if (b->byte_symbol[i] == id) return true;
  return false;
}

static void mark_seam(kf_bpe *b, int32_t left, int32_t right) {
  kf_piece l = b->vocab->pieces[left], r = b->vocab->pieces[right];
  uint32_t at = l.bytes;
  while (at > 0 && ((uint8_t)l.text[--at] & 0xc0) == 0x80) {}
  int32_t code, last = kf_vocab_find(b->vocab, l.text + at, l.bytes - at);
  int32_t first = kf_vocab_find(b->vocab, r.text, r.bytes ? (size_t)kf_utf8_next(r.text, r.bytes, &code) : 0);
  /* A merge of symbols that stand for what they do not spell (<0x0A>): nothing is known of its seam. */
  if (b->byte_fallback && (l.bytes == 6 || r.bytes == 6) && (is_unspelled(b, left) || is_unspelled(b, right)))
    memset(b->seam, 0xff, sizeof b->seam);
  if (left == b->unk || right == b->unk) memset(b->seam, 0xff, sizeof b->seam);
  uint32_t bit = mix(pair_of(last, first)) & (SEAM_BITS - 1);
  b->seam[bit / 64] |= (uint64_t)1 << bit % 64;
}

static kf_status add_merge(kf_bpe *b, const char *file, size_t rank, const char *left, size_t left_bytes, const char *right,
                           size_t right_bytes, kf_buffer *joined, kf_error *e) {
  joined->bytes = 0;
  KF_TRY(kf_buffer_add(joined, left, left_bytes, e));
  KF_TRY(kf_buffer_add(joined, right, right_bytes, e));
  int32_t l = kf_vocab_find(b->vocab, left, left_bytes), r = kf_vocab_find(b->vocab, right, right_bytes);
  int32_t id = kf_vocab_find(b->vocab, joined->data, joined->bytes);
  if (l < 0 || r < 0 || id < 0)
    return kf_fail(e, KF_ERROR_INPUT, "%s: merge %zu: \"%.60s\" is not in the vocabulary", file, rank,
                   l < 0   ? left
                   : r < 0 ? right
                           : joined->data);
  merge *m = find_merge(b, pair_of(l, r));
  *m = (merge){pair_of(l, r), (int32_t)rank, id}; /* of a pair that is listed twice the later rank counts */
  mark_seam(b, l, r);
  return KF_OK;
}

static kf_status read_merges(kf_bpe *b, const json_t *merges, const char *file, kf_error *e) {
  size_t count = json_array_size(merges), slots = 1024;
  if (!json_is_array(merges) || count > INT32_MAX / 4) return kf_fail(e, KF_ERROR_INPUT, "%s: model.merges is not a list", file);
  while (slots < count * 2) slots *= 2;
  KF_NEW(b->merges, slots, e);
  memset(b->merges, 0xff, slots * sizeof *b->merges);
  b->merge_mask = (uint32_t)slots - 1;
  kf_buffer joined = {0}, left = {0};
  kf_status s = KF_OK;
  for (size_t i = 0; i < count && s == KF_OK; i++) {
    const json_t *m = json_array_get(merges, i);
    const char *text = json_string_value(m), *space = text ? strchr(text, ' ') : NULL;
    const json_t *l = json_array_get(m, 0), *r = json_array_get(m, 1);
    if (space && !strchr(space + 1, ' ')) {
      left.bytes = 0;
      KF_GO(kf_buffer_add(&left, text, (size_t)(space - text), e));
      s = add_merge(b, file, i, left.data, left.bytes, space + 1, strlen(space + 1), &joined, e);
    } else if (json_is_string(l) && json_is_string(r) && json_array_size(m) == 2) {
      s = add_merge(b, file, i, json_string_value(l), json_string_length(l), json_string_value(r), json_string_length(r), &joined,
                    e);
    } else {
      s = kf_fail(e, KF_ERROR_INPUT, "%s: merge %zu is neither \"a b\" nor [\"a\", \"b\"]", file, i);
    }
  }
done:
  kf_buffer_free(&joined);
  kf_buffer_free(&left);
  return s;
}

static kf_status read_vocab(const json_t *vocab, const char *file, kf_vocab *v, kf_error *e) {
  if (!json_is_object(vocab)) return kf_fail(e, KF_ERROR_INPUT, "%s: model.vocab is not an object of token: id", file);
  const char *text;
  size_t bytes;
  json_t *id;
  json_object_keylen_foreach((json_t *)vocab, text, bytes, id) {
    if (!json_is_integer(id)) return kf_fail(e, KF_ERROR_INPUT, "%s: the id of token \"%.60s\" is not an integer", file, text);
    KF_TRY(kf_vocab_add(v, text, bytes, json_integer_value(id), file, e));
  }
  return KF_OK;
}

static kf_status refuse(const json_t *model, const char *key, const char *file, kf_error *e) {
  const json_t *value = json_object_get(model, key);
  bool harmless = !value || json_is_null(value) || (json_is_string(value) && !json_string_length(value)) ||
                  (json_is_number(value) && json_number_value(value) == 0);
  return harmless ? KF_OK : kf_fail(e, KF_ERROR_INPUT, "%s: model.%s is not supported", file, key);
}

static void index_symbols(kf_bpe *b) {
  for (int32_t c = 0; c < SHORT_CODES; c++) {
    char text[4];
    b->short_symbol[c] = kf_vocab_find(b->vocab, text, (size_t)kf_utf8_put(c, text));
  }
  for (int i = 0; i < 256; i++) {
    static const char digit[] = "0123456789ABCDEF";
    const char text[] = {'<', '0', 'x', digit[i / 16], digit[i % 16], '>'};
    b->byte_symbol[i] = kf_vocab_find(b->vocab, text, sizeof text);
  }
}

static kf_status read_model(kf_bpe *b, const json_t *model, const char *file, kf_vocab *v, kf_error *e) {
  const char *type, *unk;
  KF_TRY(kf_json_string(model, file, "type", "BPE", &type, e));
  if (strcmp(type, "BPE") != 0)
    return kf_fail(e, KF_ERROR_INPUT, "%s: a tokenizer model of type %s is not supported, only BPE", file, type);
  KF_TRY(refuse(model, "dropout", file, e));
  KF_TRY(refuse(model, "continuing_subword_prefix", file, e));
  KF_TRY(refuse(model, "end_of_word_suffix", file, e));
  KF_TRY(kf_json_bool(model, file, "byte_fallback", false, &b->byte_fallback, e));
  KF_TRY(kf_json_bool(model, file, "ignore_merges", false, &b->ignore_merges, e));
  KF_TRY(kf_json_bool(model, file, "fuse_unk", false, &b->fuse_unk, e));
  KF_TRY(kf_json_string(model, file, "unk_token", NULL, &unk, e));
  KF_TRY(read_vocab(json_object_get(model, "vocab"), file, v, e));
  b->vocab = v;
  b->unk = unk ? kf_vocab_find(v, unk, strlen(unk)) : -1;
  if (unk && b->unk < 0) return kf_fail(e, KF_ERROR_INPUT, "%s: model.unk_token \"%.60s\" is not in the vocabulary", file, unk);
  index_symbols(b);
  return read_merges(b, json_object_get(model, "merges"), file, e);
}

kf_status kf_bpe_read(const json_t *model, const char *file, kf_vocab *v, kf_bpe **out, kf_error *e) {
  if (!json_is_object(model)) return kf_fail(e, KF_ERROR_INPUT, "%s: no \"model\"", file);
  kf_bpe *b;
  KF_NEW(b, 1, e);
  kf_status s = read_model(b, model, file, v, e);
  if (s == KF_OK)
    *out = b;
  else
    kf_bpe_free(b);
  return s;
}

void kf_bpe_free(kf_bpe *b) {
  if (!b) return;
  free(b->merges);
  free(b);
}

/* ------------------------------------------------------------------------------------------------ encoding */

typedef struct symbol {
  int32_t id; /* -1: merged into its left neighbour */
  int32_t before, after;
} symbol;

typedef struct candidate {
  uint64_t order; /* rank << 32 | position: least first */
  int32_t id;     /* what the merge gives; stale when the pair there gives something else by now */
} candidate;

typedef struct cached {
  uint32_t symbols, count;
  int32_t symbol[CACHED_SYMBOLS];
  size_t start; /* its ids stand at ids[start .. start + count) */
} cached;

struct kf_bpe_work {
  const kf_bpe *bpe;
  int32_t *run; /* symbols of the run that is being gathered */
  size_t run_count, run_room;
  symbol *chain;
  candidate *heap;
  size_t chain_room, heap_count;
  int32_t *ids;
  size_t count, room;
  cached *cache;
  uint32_t cache_mask;
};

kf_status kf_bpe_work_create(const kf_bpe *b, size_t text_bytes, kf_bpe_work **out, kf_error *e) {
  kf_bpe_work *w;
  KF_NEW(w, 1, e);
  uint32_t slots = 16;
  while (slots < 1 << 15 && slots < text_bytes / 16) slots *= 2;
  w->bpe = b, w->cache_mask = slots - 1;
  w->cache = kf_alloc(slots, sizeof *w->cache, e);
  if (!w->cache) {
    kf_bpe_work_free(w);
    return KF_ERROR_MEMORY;
  }
  *out = w;
  return KF_OK;
}

void kf_bpe_work_free(kf_bpe_work *w) {
  if (!w) return;
  free(w->run);
  free(w->chain);
  free(w->heap);
  free(w->ids);
  free(w->cache);
  free(w);
}

void kf_bpe_work_take(kf_bpe_work *w, kf_ids *out) {
  *out = (kf_ids){w->ids, w->count};
  w->ids = NULL;
  w->count = w->room = 0;
}

static kf_status grow(int32_t **list, size_t *room, size_t need, kf_error *e) {
  if (need <= *room) return KF_OK;
  size_t more = *room ? *room : 64;
  while (more < need) more *= 2;
  int32_t *p = realloc(*list, more * sizeof *p);
  if (!p) return kf_fail(e, KF_ERROR_MEMORY, "out of memory for %zu tokens", more);
  *list = p, *room = more;
  return KF_OK;
}

kf_status kf_bpe_add_id(kf_bpe_work *w, int32_t id, kf_error *e) {
  KF_TRY(grow(&w->ids, &w->room, w->count + 1, e));
  w->ids[w->count++] = id;
  return KF_OK;
}

static void heap_push(kf_bpe_work *w, candidate c) {
  size_t i = w->heap_count++;
  for (; i > 0 && w->heap[(i - 1) / 2].order > c.order; i = (i - 1) / 2) w->heap[i] = w->heap[(i - 1) / 2];
  w->heap[i] = c;
}

static candidate heap_pop(kf_bpe_work *w) {
  candidate top = w->heap[0], last = w->heap[--w->heap_count];
  size_t i = 0;
  for (size_t child; (child = 2 * i + 1) < w->heap_count; i = child) {
    if (child + 1 < w->heap_count && w->heap[child + 1].order < w->heap[child].order) child++;
    if (w->heap[child].order >= last.order) break;
    w->heap[i] = w->heap[child];
  }
  w->heap[i] = last;
  return top;
}

static void propose(kf_bpe_work *w, int32_t left, int32_t right) {
  if (left < 0 || right < 0) return;
  const merge *m = find_merge(w->bpe, pair_of(w->chain[left].id, w->chain[right].id));
  if (m->pair != UINT64_MAX) heap_push(w, (candidate){(uint64_t)m->rank << 32 | (uint32_t)left, m->id});
}

/* The heap never holds more than the n - 1 first pairs and two for each of at most n - 1 merges. */
static kf_status reserve(kf_bpe_work *w, size_t n, kf_error *e) {
  if (n >= INT32_MAX / 4) return kf_fail(e, KF_ERROR_INPUT, "text too long: a word of %zu characters", n);
  if (n <= w->chain_room) return KF_OK;
  size_t room = n < 256 ? 256 : n + n / 2;
  free(w->chain);
  free(w->heap);
  w->heap = NULL, w->chain_room = 0;
  KF_NEW(w->chain, room, e);
  KF_NEW(w->heap, 3 * room, e);
  w->chain_room = room;
  return KF_OK;
}

static kf_status merge_run(kf_bpe_work *w, kf_error *e) {
  size_t n = w->run_count;
  KF_TRY(reserve(w, n, e));
  symbol *c = w->chain;
  for (size_t i = 0; i < n; i++) c[i] = (symbol){w->run[i], (int32_t)i - 1, i + 1 < n ? (int32_t)i + 1 : -1};
  w->heap_count = 0;
  for (size_t i = 0; i + 1 < n; i++) propose(w, (int32_t)i, (int32_t)i + 1);
  while (w->heap_count) {
    candidate top = heap_pop(w);
    int32_t left = (int32_t)(top.order & UINT32_MAX), right = c[left].after;
    if (c[left].id < 0 || right < 0) continue;
    const merge *m = find_merge(w->bpe, pair_of(c[left].id, c[right].id));
    if (m->pair == UINT64_MAX || m->id != top.id) continue;
    c[left].id = top.id, c[left].after = c[right].after;
    c[right].id = -1;
    if (c[left].after >= 0) c[c[left].after].before = left;
    propose(w, c[left].before, left);
    propose(w, left, c[left].after);
  }
  for (int32_t i = 0; i >= 0; i = c[i].after) KF_TRY(kf_bpe_add_id(w, c[i].id, e));
  return KF_OK;
}

/* Merges the gathered run, or copies what the same run gave before. */
static kf_status flush_run(kf_bpe_work *w, kf_error *e) {
  size_t n = w->run_count;
  if (n <= 1) {
    if (n) KF_TRY(kf_bpe_add_id(w, w->run[0], e));
    w->run_count = 0;
    return KF_OK;
  }
  cached *slot = NULL;
  if (n <= CACHED_SYMBOLS) {
    uint64_t h = n;
    for (size_t i = 0; i < n; i++) h = (h ^ (uint32_t)w->run[i]) * 0x9e3779b97f4a7c15u, h ^= h >> 29;
    slot = &w->cache[(h >> 32) & w->cache_mask];
    if (slot->symbols == n && !memcmp(slot->symbol, w->run, n * sizeof *w->run)) {
      KF_TRY(grow(&w->ids, &w->room, w->count + slot->count, e));
      memcpy(w->ids + w->count, w->ids + slot->start, slot->count * sizeof *w->ids);
      w->count += slot->count;
      w->run_count = 0;
      return KF_OK;
    }
  }
  size_t start = w->count;
  KF_TRY(merge_run(w, e));
  if (slot) {
    *slot = (cached){.symbols = (uint32_t)n, .count = (uint32_t)(w->count - start), .start = start};
    memcpy(slot->symbol, w->run, n * sizeof *w->run);
  }
  w->run_count = 0;
  return KF_OK;
}

static inline kf_status add_symbol(kf_bpe_work *w, int32_t id, kf_error *e) {
  if (w->run_count && !may_join(w->bpe, w->run[w->run_count - 1], id)) KF_TRY(flush_run(w, e));
  KF_TRY(grow(&w->run, &w->run_room, w->run_count + 1, e));
  w->run[w->run_count++] = id;
  return KF_OK;
}

/* A character that the vocabulary lacks, as its bytes; false when one of them has no token. */
static bool has_bytes(const kf_bpe *b, const char *text, int length) {
  for (int i = 0; i < length; i++)
    if (b->byte_symbol[(uint8_t)text[i]] < 0) return false;
  return b->byte_fallback;
}

kf_status kf_bpe_encode(kf_bpe_work *w, const char *word, size_t bytes, kf_error *e) {
  const kf_bpe *b = w->bpe;
  int32_t whole = b->ignore_merges ? kf_vocab_find(b->vocab, word, bytes) : -1;
  if (whole >= 0) return kf_bpe_add_id(w, whole, e);
  bool unknown = false; /* an <unk> that is held back so that further unknown characters fuse with it */
  for (size_t i = 0; i < bytes;) {
    int32_t code;
    int length = kf_utf8_next(word + i, bytes - i, &code);
    int32_t id = code < SHORT_CODES ? b->short_symbol[code] : kf_vocab_find(b->vocab, word + i, (size_t)length);
    if (id >= 0) {
      if (unknown) KF_TRY(add_symbol(w, b->unk, e));
      unknown = false;
      KF_TRY(add_symbol(w, id, e));
    } else if (has_bytes(b, word + i, length)) {
      for (int k = 0; k < length; k++) KF_TRY(add_symbol(w, b->byte_symbol[(uint8_t)word[i + (size_t)k]], e));
    } else if (b->unk >= 0) {
      if (unknown && !b->fuse_unk) KF_TRY(add_symbol(w, b->unk, e));
      unknown = true;
    }
    i += (size_t)length;
  }
  if (unknown) KF_TRY(add_symbol(w, b->unk, e));
  return flush_run(w, e);
}
