#include "model/cache.h"

#include <stdlib.h>

typedef struct layer_pages {
  void **page;
  int64_t pages, capacity;
  int64_t columns;
} layer_pages;

struct kf_sequence {
  int layers;
  kf_device *device;
  int64_t length;
  layer_pages *layer;
};

kf_status kf_sequence_create(const kf_config *c, kf_device *d, kf_sequence **out, kf_error *e) {
  kf_sequence *s;
  KF_NEW(s, 1, e);
  if (!(s->layer = kf_alloc((size_t)c->layers, sizeof *s->layer, e))) {
    free(s);
    return KF_ERROR_MEMORY;
  }
  s->layers = c->layers;
  s->device = d;
  for (int i = 0; i < c->layers; i++) s->layer[i].columns = kf_attention_cache_elements(&c->layer[i].attention);
  *out = s;
  return KF_OK;
}

void kf_sequence_drop(kf_sequence *s, int layer) {
  layer_pages *l = &s->layer[layer];
  for (int64_t i = 0; i < l->pages; i++) s->device->release(s->device, l->page[i]);
  free(l->page);
  *l = (layer_pages){.columns = l->columns};
}

void kf_sequence_free(kf_sequence *s) {
  if (!s) return;
  for (int i = 0; i < s->layers; i++) kf_sequence_drop(s, i);
  free(s->layer);
  free(s);
}

void kf_sequence_reset(kf_sequence *s) {
  s->length = 0;
}

int64_t kf_sequence_length(const kf_sequence *s) {
  return s->length;
}

void kf_sequence_advance(kf_sequence *s, int64_t tokens) {
  s->length += tokens;
}

static kf_status reserve_layer(kf_sequence *s, layer_pages *l, int64_t tokens, kf_error *e) {
  int64_t need = (tokens + KF_PAGE_TOKENS - 1) / KF_PAGE_TOKENS;
  size_t bytes;
  if (!kf_dtype_bytes(s->device->compute, KF_PAGE_TOKENS * l->columns, &bytes))
    return kf_fail(e, KF_ERROR_MEMORY, "a cache page is too large");
  if (need > l->capacity) {
    int64_t capacity = need > 2 * l->capacity ? need : 2 * l->capacity;
    void **page = realloc(l->page, (size_t)capacity * sizeof *page);
    if (!page) return kf_fail(e, KF_ERROR_MEMORY, "out of memory: a cache of %lld tokens", (long long)tokens);
    l->page = page;
    l->capacity = capacity;
  }
  for (; l->pages < need; l->pages++)
    if (!(l->page[l->pages] = s->device->alloc(s->device, bytes, 1, e))) return KF_ERROR_MEMORY;
  return KF_OK;
}

kf_status kf_sequence_reserve(kf_sequence *s, int layer, int64_t tokens, kf_error *e) {
  if (layer >= 0) return reserve_layer(s, &s->layer[layer], tokens, e);
  for (int i = 0; i < s->layers; i++) KF_TRY(reserve_layer(s, &s->layer[i], tokens, e));
  return KF_OK;
}

kf_rows kf_sequence_rows(const kf_sequence *s, int layer) {
  const layer_pages *l = &s->layer[layer];
  return (kf_rows){.pages = l->page, .page_tokens = KF_PAGE_TOKENS, .columns = l->columns, .dtype = s->device->compute};
}

int64_t kf_sequence_bytes(const kf_sequence *s) {
  int64_t elements = 0;
  for (int i = 0; i < s->layers; i++) elements += s->layer[i].columns;
  return elements * s->length * kf_dtype_block_bytes(s->device->compute);
}
