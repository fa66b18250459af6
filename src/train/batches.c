#include "train/batches.h"

#include <stdlib.h>
#include <string.h>

#include "base/random.h"

kf_status kf_window_create(kf_device *d, int64_t capacity, kf_window *out, kf_error *e) {
  *out = (kf_window){.device = d};
  KF_DEVICE_NEW(d, out->ids, capacity, e);
  KF_DEVICE_NEW(d, out->target, capacity, e);
  KF_DEVICE_NEW(d, out->weight, capacity, e);
  KF_NEW(out->sequence, capacity, e);
  memset(out->target, 0, (size_t)capacity * sizeof *out->target); /* also what is no target is a token */
  return KF_OK;
}

void kf_window_free(kf_window *w) {
  kf_device *d = w->device;
  if (!d) return;
  d->release(d, w->ids);
  d->release(d, w->target);
  d->release(d, w->weight);
  free(w->sequence);
  *w = (kf_window){0};
}

/* ---------------------------------------------------------------------------------------------- order */

static int64_t units(const kf_mix *m, const kf_mix_source *s) {
  return m->pairs ? s->file.documents / 2 : s->file.documents;
}

/* The order of an epoch follows from the seed, the source's number and the epoch alone. */
static void shuffle(const kf_mix *m, kf_mix_source *s) {
  kf_random dice;
  int64_t n = units(m, s);
  kf_random_seed(&dice,
                 m->seed + 0x9e3779b97f4a7c15u * (uint64_t)(s - m->source + 1) + 0xd1b54a32d192ed03u * (uint64_t)s->at.epoch);
  for (int64_t i = 0; i < n; i++) s->order[i] = i;
  for (int64_t i = n - 1; i > 0; i--) {
    int64_t j = (int64_t)(kf_random_uniform(&dice) * (double)(i + 1)), swap = s->order[i];
    s->order[i] = s->order[j];
    s->order[j] = swap;
  }
}

static void next_unit(const kf_mix *m, kf_mix_source *s) {
  s->at.offset = 0;
  if (++s->at.index < units(m, s)) return;
  s->at.index = 0;
  s->at.epoch++;
  shuffle(m, s);
}

/* The source that is furthest behind its share: no chance in it, and after n windows each is within one of its share. */
static kf_mix_source *choose(kf_mix *m) {
  double sum = 0, most = -1;
  int64_t drawn = 1;
  kf_mix_source *best = m->source;
  for (int i = 0; i < m->count; i++) {
    sum += m->source[i].weight;
    drawn += m->source[i].at.drawn;
  }
  for (int i = 0; i < m->count; i++) {
    double behind = m->source[i].weight / sum * (double)drawn - (double)m->source[i].at.drawn;
    if (behind <= most) continue;
    most = behind;
    best = &m->source[i];
  }
  best->at.drawn++;
  return best;
}

static kf_status check(const kf_mix *m, const kf_mix_source *s, int number, kf_error *e) {
  if (m->pairs) return s->file.documents >= 2 ? KF_OK : kf_fail(e, KF_ERROR_INPUT, "data file %d holds no pair", number + 1);
  for (int64_t i = 0; i < s->file.documents; i++)
    if (s->file.end[i] - kf_document_start(&s->file, i) > 1) return KF_OK;
  return kf_fail(e, KF_ERROR_INPUT, "data file %d holds no document of two tokens or more", number + 1);
}

kf_status kf_mix_create(const kf_token_file *files, const double *weights, int count, bool pairs, bool isolated, uint64_t seed,
                        kf_mix *out, kf_error *e) {
  *out = (kf_mix){.count = count, .pairs = pairs, .isolated = isolated, .seed = seed};
  KF_NEW(out->source, count, e);
  for (int i = 0; i < count; i++) {
    kf_mix_source *s = &out->source[i];
    s->file = files[i];
    s->weight = weights ? weights[i] : (double)files[i].tokens;
    kf_status status = check(out, s, i, e);
    if (status == KF_OK && !(s->order = kf_alloc((size_t)units(out, s), sizeof *s->order, e))) status = KF_ERROR_MEMORY;
    if (status != KF_OK) {
      for (int j = 0; j < i; j++) free(out->source[j].order);
      free(out->source);
      *out = (kf_mix){0};
      return status;
    }
    shuffle(out, s);
  }
  return KF_OK;
}

void kf_mix_free(kf_mix *m) {
  for (int i = 0; i < m->count; i++) {
    kf_token_file_close(&m->source[i].file);
    free(m->source[i].order);
  }
  free(m->source);
  *m = (kf_mix){0};
}

/* ---------------------------------------------------------------------------------------------- windows */

static void begin_sequence(kf_window *w) {
  w->sequence[w->sequences++] = (kf_extent){w->count, 0};
}

static void put(kf_window *w, int32_t id, int32_t target, bool learnt) {
  w->ids[w->count] = id;
  w->target[w->count] = target;
  w->weight[w->count++] = learnt;
  w->sequence[w->sequences - 1].count++;
}

/* Tokens of the document at the source's position that are still to come. */
static int64_t rest(const kf_mix_source *s) {
  int64_t document = s->order[s->at.index];
  return s->file.end[document] - kf_document_start(&s->file, document) - s->at.offset;
}

static int64_t token_at(const kf_mix_source *s) {
  return kf_document_start(&s->file, s->order[s->at.index]) + s->at.offset;
}

/* A document's last token predicts nothing, so it is not an input. */
static void fill_isolated(const kf_mix *m, kf_mix_source *s, int64_t length, kf_window *w) {
  for (int64_t end = w->count + length; w->count < end;) {
    if (rest(s) < 2) {
      next_unit(m, s);
      continue;
    }
    int64_t n = rest(s) - 1 < end - w->count ? rest(s) - 1 : end - w->count, at = token_at(s);
    begin_sequence(w);
    for (int64_t i = 0; i < n; i++) put(w, s->file.ids[at + i], s->file.ids[at + i + 1], s->file.learnt[at + i + 1]);
    s->at.offset += n;
  }
}

/* One stream of documents; the next window begins with this one's last target. */
static void fill_stream(const kf_mix *m, kf_mix_source *s, int64_t length, kf_window *w) {
  begin_sequence(w);
  while (rest(s) < 1) next_unit(m, s);
  for (int64_t i = 0; i < length; i++) {
    int64_t at = token_at(s);
    s->at.offset++;
    while (rest(s) < 1) next_unit(m, s);
    int64_t next = token_at(s);
    put(w, s->file.ids[at], s->file.ids[next], s->file.learnt[next]);
  }
}

void kf_mix_window(kf_mix *m, int64_t length, kf_window *w) {
  kf_mix_source *s = choose(m);
  if (m->isolated)
    fill_isolated(m, s, length, w);
  else
    fill_stream(m, s, length, w);
}

void kf_mix_pair(kf_mix *m, int64_t length, kf_window *w) {
  kf_mix_source *s = choose(m);
  for (int side = 0; side < 2; side++) {
    int64_t document = 2 * s->order[s->at.index] + side, at = kf_document_start(&s->file, document),
            n = s->file.end[document] - at - 1;
    begin_sequence(w);
    for (int64_t i = 0; i < n && i < length; i++)
      put(w, s->file.ids[at + i], s->file.ids[at + i + 1], s->file.learnt[at + i + 1]);
  }
  next_unit(m, s);
}

/* ---------------------------------------------------------------------------------------------- position */

json_t *kf_mix_state(const kf_mix *m) {
  json_t *list = json_array();
  for (int i = 0; i < m->count; i++) {
    const kf_source_position *p = &m->source[i].at;
    json_array_append_new(list, json_pack("{s:I,s:I,s:I,s:I}", "epoch", (json_int_t)p->epoch, "index", (json_int_t)p->index,
                                          "offset", (json_int_t)p->offset, "drawn", (json_int_t)p->drawn));
  }
  return list;
}

kf_status kf_mix_restore(kf_mix *m, const json_t *state, kf_error *e) {
  if ((int)json_array_size(state) != m->count)
    return kf_fail(e, KF_ERROR_INPUT, "the checkpoint is of %zu data files, not %d", json_array_size(state), m->count);
  for (int i = 0; i < m->count; i++) {
    kf_mix_source *s = &m->source[i];
    const json_t *o = json_array_get(state, (size_t)i);
    const char *what = "the checkpoint's data position";
    KF_TRY(kf_json_int(o, what, "epoch", 0, 0, INT64_MAX, &s->at.epoch, e));
    KF_TRY(kf_json_int(o, what, "index", 0, 0, units(m, s) - 1, &s->at.index, e));
    KF_TRY(kf_json_int(o, what, "offset", 0, 0, INT64_MAX, &s->at.offset, e));
    KF_TRY(kf_json_int(o, what, "drawn", 0, 0, INT64_MAX, &s->at.drawn, e));
    shuffle(m, s);
    if (!m->pairs && rest(s) < 0) return kf_fail(e, KF_ERROR_INPUT, "%s is behind its document's end", what);
  }
  return KF_OK;
}
