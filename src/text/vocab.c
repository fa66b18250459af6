#include "text/vocab.h"

#include <stdlib.h>
#include <string.h>

static uint32_t hash(const char *text, size_t bytes) {
  uint64_t h = 0xcbf29ce484222325u;
  for (size_t i = 0; i < bytes; i++) h = (h ^ (uint8_t)text[i]) * 0x100000001b3u;
  return (uint32_t)(h ^ h >> 32);
}

static uint32_t slot_of(const kf_vocab *v, const char *text, size_t bytes) {
  uint32_t slot = hash(text, bytes) & v->mask;
  for (; v->slots[slot] >= 0; slot = (slot + 1) & v->mask) {
    const kf_piece *p = &v->pieces[v->slots[slot]];
    if (p->bytes == bytes && !memcmp(p->text, text, bytes)) break;
  }
  return slot;
}

static kf_status grow_slots(kf_vocab *v, kf_error *e) {
  uint32_t count = v->slots ? (v->mask + 1) * 2 : 1024;
  int32_t *old = v->slots, *slots;
  uint32_t old_count = old ? v->mask + 1 : 0;
  KF_NEW(slots, count, e);
  memset(slots, 0xff, count * sizeof *slots);
  v->slots = slots, v->mask = count - 1;
  for (uint32_t i = 0; i < old_count; i++)
    if (old[i] >= 0) slots[slot_of(v, v->pieces[old[i]].text, v->pieces[old[i]].bytes)] = old[i];
  free(old);
  return KF_OK;
}

static kf_status grow_pieces(kf_vocab *v, int32_t size, kf_error *e) {
  int32_t room = v->room ? v->room : 1024;
  while (room < size) room *= 2;
  kf_piece *pieces;
  KF_NEW(pieces, room, e);
  if (v->size) memcpy(pieces, v->pieces, (size_t)v->size * sizeof *pieces);
  free(v->pieces);
  v->pieces = pieces, v->room = room;
  return KF_OK;
}

kf_status kf_vocab_add(kf_vocab *v, const char *text, size_t bytes, int64_t id, const char *file, kf_error *e) {
  if (id < 0 || id >= KF_VOCAB_IDS || bytes > INT32_MAX)
    return kf_fail(e, KF_ERROR_INPUT, "%s: token \"%.60s\" has the id %lld, outside 0..%d", file, text, (long long)id,
                   KF_VOCAB_IDS - 1);
  if (id < v->size && v->pieces[id].text && (v->pieces[id].bytes != bytes || memcmp(v->pieces[id].text, text, bytes) != 0))
    return kf_fail(e, KF_ERROR_INPUT, "%s: tokens \"%.60s\" and \"%.60s\" have the same id %lld", file, v->pieces[id].text, text,
                   (long long)id);
  if (!v->slots || (uint32_t)v->count * 2 > v->mask) KF_TRY(grow_slots(v, e));
  if (id >= v->room) KF_TRY(grow_pieces(v, (int32_t)id + 1, e));
  uint32_t slot = slot_of(v, text, bytes);
  int32_t before = v->slots[slot];
  if (before == id) return KF_OK;
  const char *copy = before >= 0 ? v->pieces[before].text : kf_arena_string(&v->arena, text, bytes, e);
  if (!copy) return KF_ERROR_MEMORY;
  if (before >= 0) v->pieces[before] = (kf_piece){0};
  v->count += before < 0;
  v->pieces[id] = (kf_piece){copy, (uint32_t)bytes};
  v->slots[slot] = (int32_t)id;
  if (id >= v->size) v->size = (int32_t)id + 1;
  return KF_OK;
}

int32_t kf_vocab_find(const kf_vocab *v, const char *text, size_t bytes) {
  return v->slots ? v->slots[slot_of(v, text, bytes)] : -1;
}

void kf_vocab_free(kf_vocab *v) {
  kf_arena_free(&v->arena);
  free(v->pieces);
  free(v->slots);
  *v = (kf_vocab){0};
}
