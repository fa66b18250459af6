/* kf_convert_export: the converted directory is a step between, beside OUT, and is gone at the end. */
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "convert/plan.h"
#include "export/export.h"
#include "model/model.h"

static bool is_gguf(const char *path) {
  size_t n = strlen(path);
  return n > 5 && strcmp(path + n - 5, ".gguf") == 0;
}

static kf_status check_source(const char *path, bool norms_stay, bool gguf, kf_error *e) {
  kf_config c;
  KF_TRY(kf_model_read(path, &c, NULL, e));
  kf_status s = kf_stock_check_source(path, &c, norms_stay, gguf, e);
  kf_config_free(&c);
  return s;
}

/* Options that make what the target has no graph for. */
static kf_status check_method(const kf_convert_options *o, bool *norms_stay, kf_error *e) {
  kf_plan p;
  kf_status s = kf_plan_options(o, &p, e);
  if (s == KF_OK && p.method->not_stock)
    s = kf_fail(e, KF_ERROR_USAGE,
                "method %s leaves %s, which DeepSeek's graph does not have; use fold, transmla, care or x-ecomla, or name a "
                "directory, which kvfold runs as it is",
                p.method->name, p.method->not_stock);
  *norms_stay = s != KF_OK || !p.method->drops_norms;
  kf_plan_free(&p);
  return s;
}

kf_status kf_convert_export(const char *src, const char *out_path, const kf_convert_options *o, const kf_export_options *target,
                            kf_convert_result *converted, kf_export_result *exported, kf_error *e) {
  char between[KF_PATH], found[KF_PATH];
  bool norms_stay;
  kf_export_options t = target ? *target : (kf_export_options){0};
  if (kf_exists(out_path)) return kf_fail(e, KF_ERROR_IO, "%s exists", out_path);
  if (snprintf(between, sizeof between, "%s.converted", out_path) >= (int)sizeof between)
    return kf_fail(e, KF_ERROR_IO, "%.60s...: the path is too long", out_path);
  KF_TRY(check_method(o, &norms_stay, e)); /* before the work, not after it */
  KF_TRY(kf_locate(src, found, e));
  bool gguf = t.format ? strcmp(t.format, "gguf") == 0 : is_gguf(out_path);
  if (!t.source && is_gguf(found) && gguf) t.source = found;
  KF_TRY(check_source(found, norms_stay, gguf, e));
  KF_TRY(kf_convert(src, between, o, converted, e));
  kf_status s = kf_export(between, out_path, &t, exported, e);
  kf_status removed = kf_remove_tree(between, s == KF_OK ? e : NULL);
  return s == KF_OK ? removed : s;
}
