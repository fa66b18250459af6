/* Rotary frequencies and their scalings, as Hugging Face Transformers computes them (modeling_rope_utils). */
#include <math.h>
#include <string.h>

#include "model/config.h"

static const struct {
  const char *name;
  kf_rope_type type;
} types[] = {
    {"default", KF_ROPE_DEFAULT}, {"linear", KF_ROPE_LINEAR},     {"dynamic", KF_ROPE_DYNAMIC}, {"llama3", KF_ROPE_LLAMA3},
    {"yarn", KF_ROPE_YARN},       {"longrope", KF_ROPE_LONGROPE}, {"su", KF_ROPE_LONGROPE}, /* longrope's first name */
};

const char *kf_rope_type_name(kf_rope_type t) {
  return types[t].name;
}

static kf_status read_factors(const char *file, const json_t *scaling, const char *key, int count, kf_arena *arena,
                              const double **out, kf_error *e) {
  const json_t *list = json_object_get(scaling, key);
  if (!json_is_array(list) || json_array_size(list) != (size_t)count)
    return kf_fail(e, KF_ERROR_INPUT, "%s: rope_scaling.%s must be a list of %d numbers", file, key, count);
  double *values = kf_arena_alloc(arena, (size_t)count, sizeof *values, e);
  if (!values) return KF_ERROR_MEMORY;
  for (int i = 0; i < count; i++) {
    values[i] = json_number_value(json_array_get(list, (size_t)i));
    if (!(values[i] > 0)) return kf_fail(e, KF_ERROR_INPUT, "%s: rope_scaling.%s[%d] must be a positive number", file, key, i);
  }
  *out = values;
  return KF_OK;
}

static kf_status read_scaling(const char *file, const json_t *config, const json_t *s, kf_arena *arena, kf_rope *r, kf_error *e) {
  const double huge = 1e30;
  KF_TRY(kf_json_real(s, file, "factor", r->type == KF_ROPE_LONGROPE ? 0 : 1, 0, huge, &r->factor, e));
  KF_TRY(kf_json_real(s, file, "low_freq_factor", 1, 1e-9, huge, &r->low_freq_factor, e));
  KF_TRY(kf_json_real(s, file, "high_freq_factor", 4, 1e-9, huge, &r->high_freq_factor, e));
  KF_TRY(kf_json_real(s, file, "beta_fast", 32, 1e-9, huge, &r->beta_fast, e));
  KF_TRY(kf_json_real(s, file, "beta_slow", 1, 1e-9, huge, &r->beta_slow, e));
  KF_TRY(kf_json_real(s, file, "mscale", 0, -huge, huge, &r->mscale, e));
  KF_TRY(kf_json_real(s, file, "mscale_all_dim", 0, -huge, huge, &r->mscale_all_dim, e));
  KF_TRY(kf_json_real(s, file, "attention_factor", 0, -huge, huge, &r->attention_factor, e));
  KF_TRY(kf_json_bool(s, file, "truncate", true, &r->truncate, e));
  int64_t original;
  KF_TRY(kf_json_int(config, file, "original_max_position_embeddings", 0, 1, INT64_C(1) << 40, &original, e));
  if (r->type == KF_ROPE_LONGROPE && original) r->factor = (double)r->context / (double)original;
  if (!original) KF_TRY(kf_json_int(s, file, "original_max_position_embeddings", r->context, 1, INT64_C(1) << 40, &original, e));
  r->original_context = original;
  if (r->type == KF_ROPE_LLAMA3 && r->high_freq_factor <= r->low_freq_factor)
    return kf_fail(e, KF_ERROR_INPUT, "%s: rope_scaling.high_freq_factor must be above low_freq_factor", file);
  if (r->type == KF_ROPE_LONGROPE) {
    KF_TRY(read_factors(file, s, "short_factor", r->dim / 2, arena, &r->short_factor, e));
    KF_TRY(read_factors(file, s, "long_factor", r->dim / 2, arena, &r->long_factor, e));
  }
  if (r->type != KF_ROPE_LONGROPE && !(r->factor > 0))
    return kf_fail(e, KF_ERROR_INPUT, "%s: rope_scaling.factor must be positive", file);
  return KF_OK;
}

kf_status kf_rope_from_json(const char *file, const json_t *config, int dim, int64_t context, kf_arena *arena, kf_rope *out,
                            kf_error *e) {
  *out = (kf_rope){
      .type = KF_ROPE_DEFAULT, .dim = dim, .context = context, .original_context = context, .factor = 1, .truncate = true};
  if (dim < 0 || dim % 2) return kf_fail(e, KF_ERROR_INPUT, "%s: a rotation over %d numbers a head is not even", file, dim);
  const json_t *s = json_object_get(config, "rope_parameters"); /* Transformers 5 */
  if (!s || json_is_null(s)) s = json_object_get(config, "rope_scaling");
  if (s && !json_is_null(s) && !json_is_object(s)) return kf_fail(e, KF_ERROR_INPUT, "%s: rope_scaling must be an object", file);
  KF_TRY(kf_json_real(config, file, "rope_theta", 10000, 1e-6, 1e30, &out->theta, e));
  if (!s || json_is_null(s)) return KF_OK;
  KF_TRY(kf_json_real(s, file, "rope_theta", out->theta, 1e-6, 1e30, &out->theta, e));
  double partial;
  KF_TRY(kf_json_real(s, file, "partial_rotary_factor", 1, 0, 1, &partial, e));
  if (partial != 1) return kf_fail(e, KF_ERROR_INPUT, "%s: partial_rotary_factor %g is not supported", file, partial);
  const char *name;
  KF_TRY(kf_json_string(s, file, "type", "default", &name, e));
  KF_TRY(kf_json_string(s, file, "rope_type", name, &name, e));
  for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
    if (strcmp(types[i].name, name) != 0) continue;
    out->type = types[i].type;
    return out->type == KF_ROPE_DEFAULT ? KF_OK : read_scaling(file, config, s, arena, out, e);
  }
  return kf_fail(e, KF_ERROR_INPUT, "%s: unknown rope type '%s' (known: default, linear, dynamic, llama3, yarn, longrope)", file,
                 name);
}

static double yarn_mscale(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

/* Pair index (real) whose wavelength makes `turns` rotations in the original context. */
static double yarn_bound(const kf_rope *r, double turns) {
  return r->dim * log((double)r->original_context / (turns * 2 * M_PI)) / (2 * log(r->theta));
}

static void scale_yarn(const kf_rope *r, double *f, double *attention_factor) {
  double low = yarn_bound(r, r->beta_fast), high = yarn_bound(r, r->beta_slow);
  if (r->truncate) low = floor(low), high = ceil(high);
  low = fmax(low, 0), high = fmin(high, r->dim - 1);
  if (low == high) high += 0.001;
  for (int i = 0; i < r->dim / 2; i++) {
    double ramp = fmin(fmax((i - low) / (high - low), 0), 1);
    f[i] = f[i] / r->factor * ramp + f[i] * (1 - ramp);
  }
  if (r->attention_factor != 0)
    *attention_factor = r->attention_factor;
  else if (r->mscale != 0 && r->mscale_all_dim != 0)
    *attention_factor = yarn_mscale(r->factor, r->mscale) / yarn_mscale(r->factor, r->mscale_all_dim);
  else
    *attention_factor = yarn_mscale(r->factor, 1);
}

static void scale_llama3(const kf_rope *r, double *f) {
  double low = (double)r->original_context / r->low_freq_factor, high = (double)r->original_context / r->high_freq_factor;
  for (int i = 0; i < r->dim / 2; i++) {
    double wave = 2 * M_PI / f[i];
    double smooth = ((double)r->original_context / wave - r->low_freq_factor) / (r->high_freq_factor - r->low_freq_factor);
    if (wave > low)
      f[i] /= r->factor;
    else if (wave >= high)
      f[i] = (1 - smooth) * f[i] / r->factor + smooth * f[i];
  }
}

static void scale_longrope(const kf_rope *r, int64_t length, double *f, double *attention_factor) {
  const double *factor = length > r->original_context ? r->long_factor : r->short_factor;
  for (int i = 0; i < r->dim / 2; i++) f[i] /= factor[i];
  if (r->attention_factor != 0)
    *attention_factor = r->attention_factor;
  else if (r->factor > 1)
    *attention_factor = sqrt(1 + log(r->factor) / log((double)r->original_context));
}

void kf_rope_frequencies(const kf_rope *r, int64_t length, double *f, double *attention_factor) {
  double theta = r->theta;
  *attention_factor = 1;
  if (r->type == KF_ROPE_DYNAMIC && length > r->context && r->dim > 2)
    theta *= pow(r->factor * (double)length / (double)r->context - (r->factor - 1), r->dim / (r->dim - 2.0));
  for (int i = 0; i < r->dim / 2; i++) f[i] = pow(theta, -2.0 * i / r->dim);
  switch (r->type) {
  case KF_ROPE_DEFAULT:
  case KF_ROPE_DYNAMIC: break;
  case KF_ROPE_LINEAR:
    for (int i = 0; i < r->dim / 2; i++) f[i] /= r->factor;
    break;
  case KF_ROPE_LLAMA3: scale_llama3(r, f); break;
  case KF_ROPE_YARN: scale_yarn(r, f, attention_factor); break;
  case KF_ROPE_LONGROPE: scale_longrope(r, length, f, attention_factor); break;
  }
  for (int i = 0; i < r->dim / 2; i++) f[i] = (float)f[i];
}
