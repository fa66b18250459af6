/* kf_sweep: makes the models that it compares, one at a time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "report/compare.h"
#include "report/held_out.h"

typedef struct sweep {
  const char *src;
  const kf_sweep_options *o;
  char directory[KF_PATH]; /* models are made here */
  char shared[KF_PATH];    /* what their conversions have in common */
  kf_comparison comparison;
  json_t *failed;
  kf_setting *settings; /* [convert.setting_count] those of the method at work */
  char name[128];       /* of the model at work */
} sweep;

/* The hooks of a conversion: its notes say which one they are about. */
static int progress(void *user, const char *what, double done, double total) {
  const kf_hooks *hooks = &((const sweep *)user)->o->convert.hooks;
  return hooks->progress ? hooks->progress(hooks->user, what, done, total) : 0;
}

static void note(void *user, const char *sentence) {
  const sweep *w = user;
  kf_note(&w->o->convert.hooks, "%s: %s", w->name, sentence);
}

/* "METHOD.KEY": the key, when it is for this method; any other key as it is; NULL: for another method. */
static const char *key_for(const char *key, const char *method) {
  const char *dot = strchr(key, '.');
  if (!dot) return key;
  return strlen(method) == (size_t)(dot - key) && strncmp(key, method, (size_t)(dot - key)) == 0 ? dot + 1 : NULL;
}

static bool known(const char *method) {
  for (int i = 0; kf_method_name(i); i++)
    if (strcmp(kf_method_name(i), method) == 0) return true;
  return false;
}

static kf_status check(const char *text, const kf_sweep_options *o, kf_error *e) {
  if (o->method_count < 1 || o->cache_count < 1)
    return kf_fail(e, KF_ERROR_USAGE, "a sweep needs at least one method and one cache size");
  for (int i = 0; i < o->method_count; i++)
    if (!known(o->methods[i])) return kf_fail(e, KF_ERROR_USAGE, "method '%.40s' is not known", o->methods[i]);
  for (int i = 0; i < o->convert.setting_count; i++) {
    int wanted = 0;
    for (int m = 0; m < o->method_count; m++) wanted += key_for(o->convert.settings[i].key, o->methods[m]) != NULL;
    if (!wanted) return kf_fail(e, KF_ERROR_USAGE, "setting '%.60s' is for none of the methods", o->convert.settings[i].key);
  }
  return kf_held_out(text, o->convert.calibration, o->convert.calibration_count, "each model of the sweep",
                     &o->compare.eval.hooks, e);
}

static kf_status convert(sweep *w, const char *method, const char *cache, const char *path, double *seconds, kf_error *e) {
  kf_convert_options o = w->o->convert;
  kf_convert_result r;
  if (!o.share) o.share = w->shared;
  o.method = method;
  o.cache = cache;
  o.settings = w->settings;
  o.hooks = (kf_hooks){progress, note, w};
  o.setting_count = 0;
  for (int i = 0; i < w->o->convert.setting_count; i++) {
    const char *key = key_for(w->o->convert.settings[i].key, method);
    if (key) w->settings[o.setting_count++] = (kf_setting){key, w->o->convert.settings[i].value};
  }
  KF_TRY(kf_convert(w->src, path, &o, &r, e));
  *seconds = r.seconds;
  return KF_OK;
}

static kf_status remove_model(const char *path, kf_error *e) {
  char partial[KF_PATH];
  int n = snprintf(partial, sizeof partial, "%s.partial", path);
  kf_status s = kf_remove_tree(path, e);
  return s == KF_OK && n < (int)sizeof partial ? kf_remove_tree(partial, e) : s;
}

/* One method at one size. Its failure is written down; an interruption ends the sweep. */
static kf_status run_one(sweep *w, const char *method, const char *cache, kf_error *e) {
  char file[128], path[KF_PATH];
  kf_error why = {0};
  double seconds = 0;
  snprintf(w->name, sizeof w->name, "%.60s %.40s", method, cache);
  snprintf(file, sizeof file, "%.60s-%.40s", method, cache);
  for (char *p = file; *p; p++)
    if (*p == '/' || (unsigned char)*p < ' ') *p = '_';
  KF_TRY(kf_join(path, w->directory, file, e));
  kf_status s = convert(w, method, cache, path, &seconds, &why);
  if (s == KF_OK) s = kf_comparison_add(&w->comparison, path, w->name, seconds, &why);
  if (!w->o->keep) KF_TRY(remove_model(path, e));
  if (s == KF_ERROR_CANCELLED) return kf_fail(e, s, "%s", why.message);
  if (s != KF_OK)
    json_array_append_new(
        w->failed, json_pack("{s:s, s:s, s:s, s:s}", "name", w->name, "method", method, "cache", cache, "sentence", why.message));
  return KF_OK;
}

static kf_status run_all(sweep *w, kf_error *e) {
  for (int m = 0; m < w->o->method_count; m++)
    for (int i = 0; i < w->o->cache_count; i++) KF_TRY(run_one(w, w->o->methods[m], w->o->caches[i], e));
  if (json_array_size(w->comparison.models)) return KF_OK;
  const char *sentence = json_string_value(json_object_get(json_array_get(w->failed, 0), "sentence"));
  return kf_fail(e, KF_ERROR_INPUT, "all conversions failed, the first so: %s", sentence ? sentence : "");
}

static kf_status make_directory(sweep *w, kf_error *e) {
  const char *base = w->o->keep ? w->o->keep : w->o->scratch;
  if (w->o->keep) {
    snprintf(w->directory, sizeof w->directory, "%s", base);
    return kf_make_directory(base, e);
  }
  KF_TRY(kf_join(w->directory, base ? base : ".", "kvfold-sweep-XXXXXX", e));
  if (mkdtemp(w->directory)) return KF_OK;
  *w->directory = 0;
  return kf_fail_errno(e, "cannot make a directory for models in %s", base ? base : ".");
}

kf_status kf_sweep(const char *src, const char *text, const kf_sweep_options *o, kf_text *json, kf_error *e) {
  sweep *w;
  kf_status s;
  KF_TRY(check(text, o, e));
  KF_TRY(kf_held_out_model(text, src, &o->compare.eval.hooks, e));
  KF_NEW(w, 1, e);
  w->src = src;
  w->o = o;
  w->failed = json_array();
  KF_GO((w->settings = kf_alloc((size_t)o->convert.setting_count + 1, sizeof *w->settings, e)) ? KF_OK : KF_ERROR_MEMORY);
  KF_GO(kf_comparison_begin(&w->comparison, src, text, &o->compare, e));
  KF_GO(make_directory(w, e));
  KF_GO(kf_join(w->shared, w->directory, ".shared", e));
  KF_GO(run_all(w, e));
  s = kf_comparison_end(&w->comparison, json_incref(w->failed), json, e);
done:
  if (*w->directory) kf_remove_tree(o->keep ? w->shared : w->directory, NULL);
  kf_comparison_free(&w->comparison);
  json_decref(w->failed);
  free(w->settings);
  free(w);
  return s;
}
