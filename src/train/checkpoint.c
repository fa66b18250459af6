#include "train/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ARRAYS = 3 };
static const char *const array_name[ARRAYS] = {"value", "first", "second"};

static float *array_of(const kf_parameters *p, int array) {
  return array == 0 ? p->value : array == 1 ? p->first : p->second;
}

static kf_status write_all(kf_safetensors_writer *w, const kf_parameters *p, const char *state, kf_error *e) {
  char name[320];
  for (int a = 0; a < ARRAYS; a++) {
    for (int i = 0; i < p->count; i++) {
      const kf_parameter *item = &p->item[i];
      if (!item->trained) continue;
      snprintf(name, sizeof name, "%s.%s", array_name[a], item->name);
      KF_TRY(kf_safetensors_add(w, name, KF_F32, 2, (const int64_t[]){item->rows, item->columns}, array_of(p, a) + item->at, e));
    }
  }
  kf_view v = {.name = "state", .dtype = KF_U8, .dims = 1, .data = (const uint8_t *)state, .bytes = strlen(state)};
  v.shape[0] = (int64_t)v.bytes;
  return kf_safetensors_add_raw(w, &v, e);
}

kf_status kf_checkpoint_write(const char *path, const kf_parameters *p, const json_t *state, kf_error *e) {
  kf_safetensors_writer *w;
  char *text = json_dumps(state, JSON_COMPACT);
  if (!text) return kf_fail(e, KF_ERROR_MEMORY, "out of memory for a checkpoint");
  kf_status s = kf_safetensors_create(path, &w, e);
  if (s == KF_OK && (s = write_all(w, p, text, e)) != KF_OK)
    kf_safetensors_abandon(w);
  else if (s == KF_OK)
    s = kf_safetensors_finish(w, e);
  free(text);
  return s;
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
      memcpy(array_of(p, a) + item->at, v->data, v->bytes);
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
