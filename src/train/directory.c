/* OUT.run, where a run stands while it is made, and OUT, which appears at its end. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "convert/companions.h"
#include "convert/record.h"
#include "convert/write.h"
#include "train/training.h"

static kf_status paths(kf_training *t, kf_error *e) {
  size_t n = strlen(t->out);
  while (n > 1 && t->out[n - 1] == '/') n--;
  if (n == 0 || n > KF_PATH - 16) return kf_fail(e, KF_ERROR_IO, "OUT '%.80s' is not a path that can be written", t->out);
  snprintf(t->directory, sizeof t->directory, "%.*s.run", (int)n, t->out);
  KF_TRY(kf_join(t->checkpoint, t->directory, "checkpoint.safetensors", e));
  return kf_join(t->log_path, t->directory, "train.jsonl", e);
}

static kf_status take_lock(kf_training *t, kf_error *e) {
  char path[KF_PATH];
  KF_TRY(kf_join(path, t->directory, "lock", e));
  t->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (t->lock < 0) return kf_fail_errno(e, "cannot create %s", path);
  if (flock(t->lock, LOCK_EX | LOCK_NB) != 0) return kf_fail(e, KF_ERROR_IO, "another run is at work in %s", t->directory);
  return KF_OK;
}

/* The first setting that differs, by name. */
static kf_status same_settings(const kf_training *t, const json_t *before, kf_error *e) {
  const char *key;
  json_t *value;
  json_object_foreach(t->fingerprint, key, value) {
    const json_t *old = json_object_get(before, key);
    if (json_equal(value, old)) continue;
    char *was = old ? json_dumps(old, JSON_ENCODE_ANY | JSON_COMPACT) : NULL,
         *is = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    kf_status s = kf_fail(e, KF_ERROR_INPUT, "%s was made with another setting: %s was %.150s, not %.150s", t->checkpoint, key,
                          was ? was : "absent", is ? is : "?");
    free(was);
    free(is);
    return s;
  }
  return KF_OK;
}

static kf_status take_over(kf_training *t, int64_t *log_bytes, kf_error *e) {
  json_t *state;
  KF_TRY(kf_checkpoint_state(t->checkpoint, &state, e));
  kf_status s = same_settings(t, json_object_get(state, "fingerprint"), e);
  if (s == KF_OK) s = kf_checkpoint_read(t->checkpoint, t->parameters, e);
  if (s == KF_OK) s = kf_mix_restore(&t->mix, json_object_get(state, "data"), e);
  if (s == KF_OK) s = kf_json_int(state, t->checkpoint, "step", 0, 0, t->set.steps, &t->step, e);
  if (s == KF_OK) s = kf_json_int(state, t->checkpoint, "tokens", 0, 0, INT64_MAX, &t->tokens, e);
  if (s == KF_OK) s = kf_json_int(state, t->checkpoint, "log_bytes", 0, 0, INT64_MAX, log_bytes, e);
  json_decref(state);
  return s;
}

static kf_status claim(kf_training *t, bool made, kf_error *e) {
  if (kf_exists(t->out)) return kf_fail(e, KF_ERROR_IO, "%s exists", t->out);
  if (made && !t->set.resume)
    return kf_fail(e, KF_ERROR_IO,
                   "%s holds the checkpoint of a run: --resume goes on with it, removing the directory begins anew",
                   t->directory);
  KF_TRY(kf_make_directory(t->directory, e));
  return take_lock(t, e);
}

static kf_status open_log(kf_training *t, int64_t bytes, kf_error *e) {
  t->log = open(t->log_path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (t->log < 0) return kf_fail_errno(e, "cannot create %s", t->log_path);
  if (ftruncate(t->log, bytes) != 0 || lseek(t->log, 0, SEEK_END) < 0) return kf_fail_errno(e, "cannot write %s", t->log_path);
  return KF_OK;
}

/* Rank 0 owns the directory; the others read its checkpoint. */
kf_status kf_training_directory(kf_training *t, kf_error *e) {
  int64_t log_bytes = 0;
  bool owner = kf_peers_rank(t->set.peers) == 0;
  KF_TRY(paths(t, e));
  bool made = kf_is_file(t->checkpoint);
  KF_TRY(kf_peers_agree(t->set.peers, owner ? claim(t, made, e) : KF_OK, e));
  if (made) KF_TRY(take_over(t, &log_bytes, e));
  if (owner) KF_TRY(open_log(t, log_bytes, e));
  if (t->step) kf_note(&t->set.hooks, "going on from step %lld of %lld", (long long)t->step, (long long)t->set.steps);
  return KF_OK;
}

static kf_status state_of(const kf_training *t, json_t **out, kf_error *e) {
  if (fsync(t->log) != 0) return kf_fail_errno(e, "cannot write %s", t->log_path);
  *out = json_pack("{s:I,s:I,s:I,s:o,s:O}", "step", (json_int_t)t->step, "tokens", (json_int_t)t->tokens, "log_bytes",
                   (json_int_t)lseek(t->log, 0, SEEK_CUR), "data", kf_mix_state(&t->mix), "fingerprint", t->fingerprint);
  return *out ? KF_OK : kf_fail(e, KF_ERROR_MEMORY, "out of memory for a checkpoint");
}

kf_status kf_training_save(kf_training *t, kf_error *e) {
  json_t *state = NULL;
  kf_status s = kf_peers_rank(t->set.peers) == 0 ? state_of(t, &state, e) : KF_OK;
  s = kf_peers_agree(t->set.peers, s, e);
  if (s == KF_OK) s = kf_checkpoint_write(t->checkpoint, &t->shards, state, e);
  json_decref(state);
  return s;
}

kf_status kf_training_note(kf_training *t, const kf_train_step *s, kf_error *e) {
  kf_buffer b = {0};
  if (kf_peers_rank(t->set.peers) != 0) return KF_OK;
  kf_status status =
      kf_buffer_printf(&b, e, "{\"step\": %lld, \"tokens\": %lld, \"loss\": %.9g, \"nll\": %.9g, \"divergence\": %.9g, ",
                       (long long)s->step, (long long)s->tokens, s->loss, s->nll, s->divergence);
  if (status == KF_OK && t->run.objective->pairs) status = kf_buffer_printf(&b, e, "\"correct\": %.6g, ", s->correct);
  if (status == KF_OK)
    status = kf_buffer_printf(&b, e, "\"rate\": %.9g, \"gradient_norm\": %.9g, \"tokens_per_second\": %.1f}\n", s->rate,
                              s->gradient_norm, s->tokens_per_second);
  for (size_t done = 0; status == KF_OK && done < b.bytes;) {
    ssize_t n = write(t->log, b.data + done, b.bytes - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) status = kf_fail_errno(e, "cannot write %s", t->log_path);
    done += n > 0 ? (size_t)n : 0;
  }
  kf_buffer_free(&b);
  return status;
}

/* ---------------------------------------------------------------------------------------------- OUT */

/* A unit is a layer, as in a conversion; the embedding comes first and the rest last. */
static int layer_of(const char *name, int layers) {
  int layer;
  if (strncmp(name, "model.embed_tokens.", 19) == 0) return -1;
  return sscanf(name, "model.layers.%d.", &layer) == 1 ? layer : layers;
}

static kf_status write_weights(const kf_training *t, kf_output *o, kf_error *e) {
  const kf_parameters *p = t->parameters;
  for (int layer = kf_output_units(o) - 1; layer <= t->config.layers;
       layer++) { /* those before it an earlier end of this run wrote */
    for (int i = 0; i < p->count; i++) {
      const kf_parameter *item = &p->item[i];
      if (layer_of(item->name, t->config.layers) == layer)
        KF_TRY(kf_output_add(o, item->name, item->columns == 1 ? 1 : 2, (const int64_t[]){item->rows, item->columns},
                             p->value + item->at, e));
    }
    KF_TRY(kf_output_end_unit(o, NULL, e));
  }
  return kf_output_seal(o, e);
}

static kf_status write_config(const kf_training *t, const char *directory, kf_error *e) {
  char path[KF_PATH];
  json_t *config;
  KF_TRY(kf_config_record(&t->config, "", NULL, NULL, 0, t->dtype, &config, e));
  kf_status s = kf_join(path, directory, "config.json", e);
  if (s == KF_OK) s = kf_json_write(path, config, e);
  json_decref(config);
  if (s == KF_OK) s = kf_join(path, directory, "training.json", e);
  return s == KF_OK ? kf_json_write(path, t->fingerprint, e) : s;
}

/* Reads the result back, as any command would: what cannot be loaded is not published. */
static kf_status check_result(const char *directory, kf_error *e) {
  kf_config c;
  kf_weights w;
  KF_TRY(kf_model_read(directory, &c, &w, e));
  kf_weights_close(&w);
  kf_config_free(&c);
  return KF_OK;
}

static kf_status fill(const kf_training *t, kf_output *o, kf_error *e) {
  char log[KF_PATH];
  const char *directory = kf_output_path(o);
  KF_TRY(write_weights(t, o, e));
  KF_TRY(kf_companions_write(&t->weights, t->student, directory, e));
  KF_TRY(write_config(t, directory, e));
  KF_TRY(kf_join(log, directory, "train.jsonl", e));
  KF_TRY(kf_copy_file(t->log_path, log, e));
  KF_TRY(check_result(directory, e));
  return kf_output_publish(o, e);
}

kf_status kf_training_publish(kf_training *t, kf_error *e) {
  kf_output *o;
  if (kf_peers_rank(t->set.peers) != 0) return KF_OK;
  KF_TRY(kf_output_open(t->out, t->fingerprint, t->dtype, 0, &t->set.hooks, &o, e));
  kf_status s = fill(t, o, e);
  kf_output_close(o, false);
  return s == KF_OK ? kf_remove_tree(t->directory, e) : s;
}
