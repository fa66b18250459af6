#include "report/verdict.h"

#include <string.h>

/* Perplexity ratios up to which a loss is called so. */
static const double HARDLY = 1.02, SMALL = 1.1, CLEAR = 1.5;

static double real(const json_t *o, const char *key) {
  return json_number_value(json_object_get(o, key));
}

static const char *text(const json_t *o, const char *key) {
  const char *s = json_string_value(json_object_get(o, key));
  return s ? s : "";
}

static const char *severity(double ratio) {
  return ratio <= HARDLY  ? "hardly anything is lost"
         : ratio <= SMALL ? "a small loss"
         : ratio <= CLEAR ? "a clear loss"
                          : "a large loss, to be trained away before use";
}

static int needles_found(const json_t *model) {
  size_t i;
  json_t *n;
  int found = 0;
  json_array_foreach(json_object_get(model, "needles"), i, n) found += json_is_true(json_object_get(n, "found"));
  return found;
}

/* The model with the lowest perplexity; with_ratio > 0: instead the smallest cache among those up to that ratio, or NULL. */
static const json_t *choose(const json_t *models, double with_ratio) {
  const json_t *best = NULL;
  size_t i;
  json_t *m;
  json_array_foreach(models, i, m) {
    const char *key = with_ratio > 0 ? "cache_bytes_per_token" : "nll";
    if (with_ratio > 0 && !(real(m, "perplexity_ratio") <= with_ratio)) continue;
    if (!best || real(m, key) < real(best, key)) best = m;
  }
  return best;
}

static kf_status tell_model(const json_t *comparison, const json_t *m, kf_buffer *out, kf_error *e) {
  const json_t *source = json_object_get(comparison, "source");
  double ratio = real(m, "perplexity_ratio");
  return kf_buffer_printf(
      out, e,
      "%s keeps %.1f%% of the cache (%.0f bytes a token in place of %.0f) and has %.4g times the source's "
      "perplexity (%.4g against %.4g; KL %.3g nats a token; the same likeliest token at %.0f%% of the places): %s. ",
      text(m, "name"), 100 * real(m, "cache_part"), real(m, "cache_bytes_per_token"), real(source, "cache_bytes_per_token"),
      ratio, real(m, "perplexity"), real(source, "perplexity"), real(m, "kl"), 100 * real(m, "top1_agreement"), severity(ratio));
}

static kf_status tell_needles(const json_t *comparison, const json_t *m, kf_buffer *out, kf_error *e) {
  const json_t *source = json_object_get(comparison, "source");
  size_t all = json_array_size(json_object_get(m, "needles"));
  int by_source = needles_found(source);
  if (!all) return KF_OK;
  if (!by_source)
    return kf_buffer_printf(out, e, "The source itself finds none of %zu numbers hidden in the text; %s finds %d. ", all,
                            text(m, "name"), needles_found(m));
  return kf_buffer_printf(out, e, "Of %zu numbers hidden in the text %s finds %d, the source %d. ", all, text(m, "name"),
                          needles_found(m), by_source);
}

static kf_status tell_engines(const json_t *m, kf_buffer *out, kf_error *e) {
  const json_t *engines = json_object_get(m, "engines");
  size_t i, loads = 0;
  json_t *o;
  if (!json_array_size(engines)) return KF_OK;
  json_array_foreach(engines, i, o) loads += json_is_true(json_object_get(o, "loads"));
  return kf_buffer_printf(out, e, loads ? "Stock engines load it once it is exported. " : "No stock engine loads it. ");
}

/* Which of several is the smallest that is still close. */
static kf_status tell_smallest(const json_t *comparison, const json_t *best, kf_buffer *out, kf_error *e) {
  const json_t *models = json_object_get(comparison, "models"), *m = choose(models, SMALL);
  if (!m)
    return kf_buffer_printf(out, e, "None of the %zu models stays within %.0f%% of the source's perplexity. ",
                            json_array_size(models), 100 * (SMALL - 1));
  if (m == best) return kf_buffer_printf(out, e, "No smaller cache stays within %.0f%%. ", 100 * (SMALL - 1));
  return kf_buffer_printf(out, e, "The smallest cache within %.0f%% is that of %s: %.1f%%, with %.4g times the perplexity. ",
                          100 * (SMALL - 1), text(m, "name"), 100 * real(m, "cache_part"), real(m, "perplexity_ratio"));
}

kf_status kf_verdict(const json_t *comparison, kf_buffer *out, kf_error *e) {
  const json_t *models = json_object_get(comparison, "models"), *best = choose(models, 0);
  size_t failed = json_array_size(json_object_get(comparison, "failed"));
  if (!best) return kf_buffer_printf(out, e, "Nothing could be measured.");
  if (json_array_size(models) > 1) KF_TRY(kf_buffer_printf(out, e, "Closest to the source: "));
  KF_TRY(tell_model(comparison, best, out, e));
  if (json_array_size(models) > 1) KF_TRY(tell_smallest(comparison, best, out, e));
  KF_TRY(tell_needles(comparison, best, out, e));
  KF_TRY(tell_engines(best, out, e));
  if (failed) KF_TRY(kf_buffer_printf(out, e, "%zu of the conversions failed. ", failed));
  if (out->bytes && out->data[out->bytes - 1] == ' ') out->data[--out->bytes] = 0;
  return KF_OK;
}
