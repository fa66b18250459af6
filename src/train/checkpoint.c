#include "train/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ARRAYS = 3 };
static const char *const array_name[ARRAYS] = {"value", "first", "second"};

static float *array_of(const kf_parameters *p, int array) {
  return array == 0 ? p->value : array == 1 ? p->first : p->second;
}

/* w NULL: only sends to rank 0, or takes what is sent to it: also behind an error, as the others know nothing of it. */
static kf_status write_arrays(kf_safetensors_writer *w, const kf_shards *s, kf_error *e) {
  const kf_parameters *p = s->parameters;
  kf_status status = KF_OK;
  char name[320];
  for (int a = 0; a < ARRAYS; a++) {
    for (int i = 0; i < p->count; i++) {
      const kf_parameter *item = &p->item[i];
      if (!item->trained) continue;
      const float *data = a == 0 ? p->value + item->at : kf_shards_collect(s, array_of(p, a), item);
      snprintf(name, sizeof name, "%s.%s", array_name[a], item->name);
      if (w && status == KF_OK)
        status = kf_safetensors_add(w, name, KF_F32, 2, (const int64_t[]){item->rows, item->columns}, data, e);
    }
  }
  return status;
}

static kf_status write_state(kf_safetensors_writer *w, const char *state, kf_error *e) {
  kf_view v = {.name = "state", .dtype = KF_U8, .dims = 1, .data = (const uint8_t *)state, .bytes = strlen(state)};
  v.shape[0] = (int64_t)v.bytes;
  return kf_safetensors_add_raw(w, &v, e);
}

kf_status kf_checkpoint_write(const char *path, const kf_shards *s, const json_t *state, kf_error *e) {
  kf_safetensors_writer *w = NULL;
  if (kf_peers_rank(s->peers) != 0) return write_arrays(NULL, s, e);
  char *text = json_dumps(state, JSON_COMPACT);
  kf_status made = text ? kf_safetensors_create(path, &w, e) : kf_fail(e, KF_ERROR_MEMORY, "out of memory for a checkpoint");
  kf_status status = write_arrays(made == KF_OK ? w : NULL, s, e);
  if (made != KF_OK)
    status = made;
  else if (status != KF_OK || (status = write_state(w, text, e)) != KF_OK)
    kf_safetensors_abandon(w);
  else
    status = kf_safetensors_finish(w, e);
  free(text);
  return status;
}

kf_status kf_checkpoint_state(const char *path, json_t **state, kf_error *e) {
  kf_safetensors *f;
  KF_TRY(kf_safetensors_open(path, &f, e));
  const kf_view *v = kf_safetensors_find(f, "state");
  kf_status s = v && v->dtype == KF_U8 ? kf_json_parse(path, (const char *)v->data, v->bytes, state, e)
                                       : kf_fail(e, KF_ERROR_INPUT, "%s is not a checkpoint of a training run", path);
  kf_safetensors_close(f);
  return s;
}

static kf_status read_all(const kf_safetensors *f, const char *path, kf_parameters *p, kf_error *e) {
  char name[320];
  for (int a = 0; a < ARRAYS; a++) {
    for (int i = 0; i < p->count; i++) {
      const kf_parameter *item = &p->item[i];
      if (!item->trained) continue;
      snprintf(name, sizeof name, "%s.%s", array_name[a], item->name);
      const kf_view *v = kf_safetensors_find(f, name);
      if (!v || v->dtype != KF_F32 || v->dims != 2 || v->shape[0] != item->rows || v->shape[1] != item->columns)
        return kf_fail(e, KF_ERROR_INPUT, "%s: tensor %s is missing or has another shape", path, name);
      kf_stretch piece = a == 0 ? (kf_stretch){item->at, item->rows * item->columns} : kf_parameters_piece(item, p->own);
      memcpy(array_of(p, a) + piece.at, (const float *)(const void *)v->data + (piece.at - item->at),
             (size_t)piece.count * sizeof(float));
    }
  }
  kf_parameters_round(p);
  return kf_device_check(p->device, e);
}

kf_status kf_checkpoint_read(const char *path, kf_parameters *p, kf_error *e) {
  kf_safetensors *f;
  KF_TRY(kf_safetensors_open(path, &f, e));
  kf_status s = read_all(f, path, p, e);
  kf_safetensors_close(f);
  return s;
}
