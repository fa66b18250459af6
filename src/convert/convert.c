/* kf_convert: layer by layer from the source's map into DST.partial, which takes DST's name at the end. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/hash.h"
#include "convert/companions.h"
#include "convert/record.h"
#include "convert/shared.h"
#include "convert/write.h"
#include "linalg/linalg.h"
#include "text/tokenizer.h"

enum { DEFAULT_CALIBRATION_TOKENS = 16384 };

typedef struct job {
  const kf_convert_options *o;
  kf_plan plan;
  char path[KF_PATH]; /* of the source */
  kf_config config;
  kf_weights weights;
  kf_dtype dtype;
  int64_t calibration_tokens;
  json_t *recipe, *fingerprint;
  kf_output *output;
  kf_corpus corpus;
  void *session; /* of the method */
  kf_convert_result result;
} job;

/* ---------------------------------------------------------------------------------------------- what decides the result */

static kf_status parse_dtype(job *j, kf_error *e) {
  if (!j->o->dtype) return KF_OK;
  if (kf_dtype_parse(j->o->dtype, &j->dtype) && (j->dtype == KF_F32 || j->dtype == KF_F16 || j->dtype == KF_BF16)) return KF_OK;
  return kf_fail(e, KF_ERROR_USAGE, "dtype '%.40s' cannot be written (known: f32, bf16, f16)", j->o->dtype);
}

static void choose_dtype(job *j) {
  if (j->o->dtype) return;
  j->dtype = kf_weights_dtype(&j->weights);
  if (j->dtype == KF_F64) j->dtype = KF_F32;
  if (kf_dtype_block(j->dtype) > 1) j->dtype = KF_BF16;
}

static kf_status write_recipe(job *j, kf_error *e) {
  const kf_convert_options *o = j->o;
  json_t *files = json_array();
  for (int i = 0; i < o->calibration_count; i++) json_array_append_new(files, json_string(o->calibration[i]));
  j->recipe =
      json_pack("{s:s,s:s?,s:s,s:O,s:o,s:I}", "method", j->plan.method->name, "cache", o->cache, "dtype", kf_dtype_name(j->dtype),
                "settings", j->plan.settings, "calibration", files, "calibration_tokens", (json_int_t)j->calibration_tokens);
  return j->recipe ? KF_OK : kf_fail(e, KF_ERROR_INPUT, "the recipe cannot be recorded: a name is not UTF-8");
}

static int by_name(const struct dirent **a, const struct dirent **b) {
  return strcmp((*a)->d_name, (*b)->d_name);
}

/* Size and time of a file, so that a changed one is not taken for the same. */
static void note_file(json_t *list, const char *path) {
  struct stat st;
  if (stat(path, &st) != 0 || !S_ISREG(st.st_mode)) return;
  json_array_append_new(
      list, json_pack("[s,I,I,I]", path, (json_int_t)st.st_size, (json_int_t)st.st_mtim.tv_sec, (json_int_t)st.st_mtim.tv_nsec));
}

/* The source's files. */
static json_t *note_source(const job *j) {
  json_t *files = json_array();
  struct dirent **names = NULL;
  int count = kf_is_directory(j->path) ? scandir(j->path, &names, NULL, by_name) : 0;
  for (int i = 0; i < count; i++) {
    char path[KF_PATH];
    if (kf_join(path, j->path, names[i]->d_name, NULL) == KF_OK) note_file(files, path);
    free(names[i]);
  }
  free(names);
  if (!kf_is_directory(j->path)) note_file(files, j->path);
  return files;
}

static kf_status take_fingerprint(job *j, kf_error *e) {
  const kf_convert_options *o = j->o;
  json_t *files = note_source(j);
  char *text = json_dumps(files, JSON_COMPACT);
  j->plan.source_hash = text ? kf_hash(KF_HASH, text, strlen(text)) : 0;
  free(text);
  for (int i = 0; i < o->calibration_count; i++) note_file(files, o->calibration[i]);
  const char *ranks = json_string_value(json_object_get(j->plan.settings, "ranks_file"));
  if (ranks) note_file(files, ranks);
  j->fingerprint = json_pack("{s:s,s:o,s:O,s:I,s:i,s:i}", "version", KF_VERSION, "files", files, "recipe", j->recipe,
                             "shard_bytes", (json_int_t)o->shard_bytes, "threads", o->threads, "compute", (int)o->compute);
  return j->fingerprint ? KF_OK : kf_fail(e, KF_ERROR_INPUT, "the path of the source is not UTF-8");
}

static kf_status prepare(job *j, const char *src, const char *dst, kf_error *e) {
  const kf_convert_options *o = j->o;
  KF_TRY(kf_plan_options(o, &j->plan, e));
  KF_TRY(parse_dtype(j, e));
  if (kf_exists(dst)) return kf_fail(e, KF_ERROR_IO, "%s exists", dst);
  KF_TRY(kf_locate(src, j->path, e));
  KF_TRY(kf_model_read(j->path, &j->config, &j->weights, e));
  choose_dtype(j);
  KF_TRY(kf_plan_resolve(&j->plan, &j->config, &j->weights, &o->hooks, e));
  if (j->plan.needs_text) j->calibration_tokens = o->calibration_tokens ? o->calibration_tokens : DEFAULT_CALIBRATION_TOKENS;
  KF_TRY(write_recipe(j, e));
  return take_fingerprint(j, e);
}

/* ---------------------------------------------------------------------------------------------- tokenizer and its kin */

static kf_status open_tokenizer(const job *j, kf_tokenizer **out, kf_error *e) {
  return kf_tokenizer_beside(&j->weights, j->path, out, e);
}

/* ---------------------------------------------------------------------------------------------- weights */

/* The tensors of one unit: 0 the embedding, 1 + i layer i, layers + 1 the rest. */
typedef struct unit {
  job *j;
  int number;
  bool mapped;     /* the attention of this layer is converted, all but its output projection */
  bool own_output; /* that too */
} unit;

static int unit_of(const kf_config *c, const char *name) {
  int layer;
  if (strncmp(name, "model.embed_tokens.", 19) == 0) return 0;
  return sscanf(name, "model.layers.%d.", &layer) == 1 ? 1 + layer : c->layers + 1;
}

/* The embedding under its own name, also where only the head is stored. */
static kf_status copy_embedding(job *j, const char *name, int64_t rows, int64_t columns, kf_error *e) {
  float *data;
  if (kf_weights_has(&j->weights, name)) return kf_output_copy(j->output, &j->weights, name, rows, columns, e);
  KF_TRY(kf_weights_read(&j->weights, "lm_head.weight", rows, columns, &data, e));
  kf_status s = kf_output_add(j->output, name, 2, (const int64_t[]){rows, columns}, data, e);
  free(data);
  return s;
}

static kf_status copy_tensor(void *user, const char *name, int64_t rows, int64_t columns, kf_error *e) {
  const unit *u = user;
  if (unit_of(&u->j->config, name) != u->number) return KF_OK;
  if (u->mapped && strstr(name, ".self_attn.") && !(strstr(name, ".o_proj.") && !u->own_output)) return KF_OK;
  if (u->number == 0) return copy_embedding(u->j, name, rows, columns, e);
  return kf_output_copy(u->j->output, &u->j->weights, name, rows, columns, e);
}

static kf_status write_mapped(job *j, int layer, const kf_mapped *m, kf_error *e) {
  for (int i = 0; i < m->tensors; i++) {
    char name[128];
    snprintf(name, sizeof name, "model.layers.%d.self_attn.%s", layer, m->tensor[i].name);
    KF_TRY(kf_output_add(j->output, name, m->tensor[i].dims, m->tensor[i].shape, m->tensor[i].data, e));
  }
  return KF_OK;
}

/* Maps and writes the attention of a layer; *record describes it, *own_output says that the output projection is among it. */
static kf_status convert_attention(job *j, int layer, json_t **record, bool *own_output, kf_error *e) {
  kf_mapped mapped;
  kf_error why = {0};
  kf_status s = j->plan.method->map(&j->plan, j->session, layer, &mapped, &why);
  if (s != KF_OK) return kf_fail(e, s, "layer %d: %s", layer, why.message);
  *record = kf_layer_record(&mapped.attention);
  for (int i = 0; i < mapped.tensors; i++) *own_output = *own_output || strcmp(mapped.tensor[i].name, "o_proj.weight") == 0;
  s = *record ? write_mapped(j, layer, &mapped, e) : kf_fail(e, KF_ERROR_MEMORY, "out of memory");
  kf_mapped_free(&mapped);
  return s;
}

static kf_status do_layer(job *j, int layer, bool done_before, kf_error *e) {
  unit u = {.j = j, .number = 1 + layer, .mapped = j->plan.convert[layer]};
  json_t *record = NULL;
  kf_status s = KF_OK;
  if (u.mapped) j->result.layers_converted++;
  if (!u.mapped) j->result.layers_kept++;
  if (done_before) {
    j->result.layers_resumed++;
    return KF_OK;
  }
  if (u.mapped) s = convert_attention(j, layer, &record, &u.own_output, e);
  if (!u.mapped && j->plan.method->resolve) record = kf_layer_record(&j->config.layer[layer].attention);
  if (s == KF_OK) s = kf_weights_each(&j->config, copy_tensor, &u, e);
  if (s == KF_OK) s = kf_output_end_unit(j->output, record, e);
  json_decref(record);
  return s;
}

static kf_status do_unit(job *j, int number, kf_error *e) {
  bool done_before = number < kf_output_units(j->output);
  if (number > 0 && number <= j->config.layers) return do_layer(j, number - 1, done_before, e);
  if (done_before) return KF_OK;
  unit u = {.j = j, .number = number};
  KF_TRY(kf_weights_each(&j->config, copy_tensor, &u, e));
  return kf_output_end_unit(j->output, NULL, e);
}

/* Text that the source writes, or wrote for a conversion that shared it. */
static kf_status own_text(job *j, const kf_tokenizer *t, kf_error *e) {
  kf_shared shared;
  kf_ids *ids = &j->corpus.ids;
  kf_status s;
  KF_TRY(kf_shared_open(&j->plan, "text", NULL, 0, j->calibration_tokens, &shared, e));
  j->corpus = kf_corpus_own(t);
  if (!shared.complete) KF_GO(kf_corpus_sample(j->path, t, j->o, j->calibration_tokens, &j->corpus, e));
  int64_t count = (int64_t)ids->count;
  KF_GO(kf_shared_move(&shared, &count, sizeof count, e));
  if (shared.complete) {
    if (count < 1 || count > j->calibration_tokens + KF_SAMPLE_WINDOW)
      KF_GO(kf_fail(e, KF_ERROR_INPUT, "%s: %lld tokens are not what was written; remove it", shared.path, (long long)count));
    if (!(ids->data = kf_alloc((size_t)count, sizeof *ids->data, e))) KF_GO(KF_ERROR_MEMORY);
    ids->count = (size_t)count;
  }
  KF_GO(kf_shared_move(&shared, ids->data, (size_t)count * sizeof *ids->data, e));
  s = kf_shared_complete(&shared, e);
done:
  kf_shared_close(&shared);
  return s;
}

/* What looks at calibration text before the first layer is written. */
static kf_status calibrate(job *j, kf_error *e) {
  const kf_convert_options *o = j->o;
  kf_tokenizer *t;
  if (!j->plan.needs_text) return KF_OK;
  j->plan.scratch = kf_output_path(j->output);
  KF_TRY(open_tokenizer(j, &t, e));
  kf_status s = o->calibration_count
                    ? kf_corpus_read(t, o->calibration, o->calibration_count, j->calibration_tokens, &j->corpus, e)
                    : own_text(j, t, e);
  kf_tokenizer_close(t);
  KF_TRY(s);
  if ((int64_t)j->corpus.ids.count < o->calibration_tokens)
    kf_note(&o->hooks, "the calibration text has %zu tokens, fewer than the %lld asked for", j->corpus.ids.count,
            (long long)o->calibration_tokens);
  return j->plan.method->open(&j->plan, &j->corpus, &j->session, e);
}

static kf_status record_choice(job *j, kf_error *e) {
  json_t *chosen;
  if (!j->session || !j->plan.method->record) return KF_OK;
  KF_TRY(j->plan.method->record(j->session, &chosen, e));
  json_object_set_new(j->recipe, "chosen", chosen);
  json_int_t tokens = 0;
  json_unpack(chosen, "{s:{s:I,s:F,s:F}}", "held_out", "tokens", &tokens, "kl", &j->result.held_out_kl, "perplexity_ratio",
              &j->result.held_out_perplexity_ratio);
  j->result.held_out_tokens = tokens;
  return KF_OK;
}

static void end_session(job *j) {
  if (j->plan.method && j->plan.method->close) j->plan.method->close(j->session);
  j->session = NULL;
}

static kf_status do_units(job *j, kf_error *e) {
  int units = j->config.layers + 2;
  KF_TRY(calibrate(j, e));
  for (int i = 0; i < units; i++) {
    KF_TRY(kf_progress(&j->o->hooks, "converting", i, units, e));
    KF_TRY(do_unit(j, i, e));
  }
  return kf_progress(&j->o->hooks, "converting", units, units, e);
}

/* ---------------------------------------------------------------------------------------------- the end */

/* Records of the layers, without those of the embedding and the rest. */
static kf_status write_config(job *j, kf_error *e) {
  char path[KF_PATH];
  json_t *layers = j->plan.method->resolve && !j->plan.kv_heads ? json_array() : NULL, *config;
  for (int i = 0; layers && i < j->config.layers; i++)
    json_array_append(layers, json_array_get(kf_output_records(j->output), (size_t)i + 1));
  /* `none` leaves a converted model's own description as it is */
  kf_status s = kf_config_record(&j->config, j->plan.method->name, j->recipe, layers, j->plan.kv_heads, j->dtype, &config, e);
  json_decref(layers);
  if (s != KF_OK) return s;
  s = kf_join(path, kf_output_path(j->output), "config.json", e);
  if (s == KF_OK) s = kf_json_write(path, config, e);
  json_decref(config);
  return s;
}

static int64_t cache_elements(const kf_config *c) {
  int64_t sum = 0;
  for (int i = 0; i < c->layers; i++) sum += kf_attention_cache_elements(&c->layer[i].attention);
  return sum;
}

/* Reads the result back, as any command would: what cannot be loaded is not published. */
static kf_status check_result(job *j, kf_error *e) {
  kf_config c;
  kf_weights w;
  KF_TRY(kf_model_read(kf_output_path(j->output), &c, &w, e));
  j->result.source_cache_elements = cache_elements(&j->config);
  j->result.cache_elements = cache_elements(&c);
  j->result.source_parameters = kf_weights_parameters(&j->weights);
  j->result.parameters = kf_weights_parameters(&w);
  kf_weights_close(&w);
  kf_config_free(&c);
  return KF_OK;
}

static kf_status run(job *j, const char *src, const char *dst, kf_error *e) {
  KF_TRY(prepare(j, src, dst, e));
  KF_TRY(kf_output_open(dst, j->fingerprint, j->dtype, j->o->shard_bytes, &j->o->hooks, &j->output, e));
  KF_TRY(do_units(j, e));
  KF_TRY(record_choice(j, e));
  end_session(j); /* its scratch file stands in the output */
  KF_TRY(kf_output_seal(j->output, e));
  KF_TRY(kf_companions_write(&j->weights, j->path, kf_output_path(j->output), e));
  KF_TRY(write_config(j, e));
  KF_TRY(check_result(j, e));
  return kf_output_publish(j->output, e);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

kf_status kf_convert(const char *src, const char *dst, const kf_convert_options *o, kf_convert_result *out, kf_error *e) {
  job *j;
  KF_NEW(j, 1, e);
  j->o = o;
  double start = now();
  int threads = kf_linalg_threads(o->threads);
  kf_status s = run(j, src, dst, e);
  kf_linalg_threads(threads);
  kf_output_close(j->output, s == KF_ERROR_CANCELLED);
  end_session(j);
  kf_corpus_free(&j->corpus);
  kf_plan_free(&j->plan);
  kf_weights_close(&j->weights);
  kf_config_free(&j->config);
  json_decref(j->recipe);
  json_decref(j->fingerprint);
  j->result.seconds = now() - start;
  if (s == KF_OK && out) *out = j->result;
  free(j);
  return s;
}
