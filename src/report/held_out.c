#include "report/held_out.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "model/model.h"

static kf_status same_bytes(const char *a, const char *b, bool *same, kf_error *e) {
  kf_map x, y;
  KF_TRY(kf_map_open(a, &x, e));
  kf_status s = kf_map_open(b, &y, e);
  if (s == KF_OK) {
    *same = x.bytes == y.bytes && (!x.bytes || memcmp(x.data, y.data, x.bytes) == 0);
    kf_map_close(&y);
  }
  kf_map_close(&x);
  return s;
}

kf_status kf_held_out(const char *text, const char *const *files, int count, const char *model, const kf_hooks *hooks,
                      kf_error *e) {
  struct stat want, got;
  if (stat(text, &want) != 0) return kf_fail_errno(e, "cannot read %s", text);
  for (int i = 0; i < count; i++) {
    if (stat(files[i], &got) != 0) {
      kf_note(hooks, "%s was calibrated on %s, which is not there: whether it is the text compared on is not known", model,
              files[i]);
      continue;
    }
    bool same = want.st_dev == got.st_dev && want.st_ino == got.st_ino;
    if (!same && want.st_size == got.st_size) KF_TRY(same_bytes(text, files[i], &same, e));
    if (same)
      return kf_fail(e, KF_ERROR_INPUT, "%s was calibrated on %s, which holds the text to compare on: take other text", model,
                     files[i]);
  }
  return KF_OK;
}

static kf_status check_list(const char *text, const json_t *list, const char *model, const kf_hooks *hooks, kf_error *e) {
  size_t count = json_array_size(list);
  const char **files;
  KF_NEW(files, count + 1, e);
  for (size_t i = 0; i < count; i++) {
    const char *file = json_string_value(json_array_get(list, i));
    files[i] = file ? file : "";
  }
  kf_status s = kf_held_out(text, files, (int)count, model, hooks, e);
  free(files);
  return s;
}

kf_status kf_held_out_model(const char *text, const char *model, const kf_hooks *hooks, kf_error *e) {
  char path[KF_PATH];
  kf_config c;
  KF_TRY(kf_locate(model, path, e));
  KF_TRY(kf_model_read(path, &c, NULL, e));
  const json_t *recipe = json_object_get(json_object_get(c.json, "kvfold"), "recipe");
  kf_status s = check_list(text, json_object_get(recipe, "calibration"), model, hooks, e);
  kf_config_free(&c);
  return s;
}
