/* kvfold: turn a pre-trained Transformer's attention into Multi-head Latent Attention.
 *
 * Design rules of this header
 *   - Everything the command does can be done through it; types are opaque; the library holds no global state,
 *     never prints and never exits.
 *   - A function that can fail returns kf_status and fills the kf_error it is given (which may be NULL) with one
 *     sentence: the file, tensor or line, what was expected and what was found.
 *   - MODEL is a directory in the Hugging Face layout, a .gguf file, or the name of a repository in the local Hugging
 *     Face cache ("org/name" or "org/name@revision"). Nothing is ever fetched.
 *   - What a function hands out (kf_text, kf_ids, opaque pointers) belongs to the caller, who frees it.
 *   - Sizes: "token" counts tokens, "elements" counts numbers, "bytes" counts bytes. Arrays are row-major; shapes stand
 *     beside the pointers.
 *   - A kf_model may be read by several threads only if each works on its own kf_batch and one at a time runs.
 */
#ifndef KVFOLD_KVFOLD_H
#define KVFOLD_KVFOLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KF_VERSION "0.1.0"

/* ------------------------------------------------------------------------------------------------ errors, hooks */

typedef enum kf_status {
  KF_OK = 0,
  KF_ERROR_INPUT,     /* a model, text or setting is missing, malformed or impossible */
  KF_ERROR_USAGE,     /* an unknown method, key or value */
  KF_ERROR_IO,        /* the system refused: disk full, read-only target, DST exists */
  KF_ERROR_MEMORY,    /* an allocation failed */
  KF_ERROR_CANCELLED, /* the progress hook asked to stop */
} kf_status;

typedef struct kf_error {
  kf_status status;
  char message[512]; /* one sentence, no newline */
} kf_error;

/* What long work tells its caller. Either function may be NULL. */
typedef struct kf_hooks {
  int (*progress)(void *user, const char *what, double done, double total); /* non-zero return: stop, KF_ERROR_CANCELLED */
  void (*note)(void *user, const char *sentence);                           /* a clamp, a default that was chosen, ... */
  void *user;
} kf_hooks;

typedef struct kf_text {
  char *data; /* also NUL-terminated */
  size_t bytes;
} kf_text;

typedef struct kf_ids {
  int32_t *data;
  size_t count;
} kf_ids;

void kf_text_free(kf_text *t); /* frees what it holds and zeroes it; NULL is allowed */
void kf_ids_free(kf_ids *ids);

const char *kf_version(void);

/* Sets what the libraries below take from the environment, before main, and choose badly by themselves: GOMP_SPINCOUNT (how long a
 * waiting thread of libgomp spins) and OPENBLAS_CORETYPE (kernels for a processor younger than OpenBLAS). What is set stays as
 * it is. True: something was missing, and a program that begins with this call executes itself again to profit. Where
 * setenv may be called (no other threads). */
bool kf_environment(void);

/* ------------------------------------------------------------------------------------------------ models */

typedef enum kf_compute {
  KF_COMPUTE_AUTO, /* bf16 where the device multiplies it natively, else f32 */
  KF_COMPUTE_F32,
  KF_COMPUTE_BF16,
} kf_compute;

typedef enum kf_device_kind {
  KF_DEVICE_AUTO, /* the CPU */
  KF_DEVICE_CPU,
  KF_DEVICE_CUDA, /* the first GPU; an error when the library was built without CUDA or there is none */
} kf_device_kind;

typedef struct kf_model_options {
  kf_compute compute;
  int threads; /* 0: all that the process may use */
  kf_hooks hooks;
  kf_device_kind device;
} kf_model_options;

typedef struct kf_model_info {
  char path[1024];    /* where MODEL was found */
  char family[32];    /* "llama", "mistral", "qwen2", "qwen3", "smollm3", "deepseek_v3", ... (the source's model_type) */
  char attention[16]; /* "grouped", "latent", "hybrid" */
  char dtype[16];     /* of the stored weights: "f32", "bf16", "q4_1", ... (the one that most bytes have) */
  char compute[16];   /* "f32" or "bf16": what this machine's CPU will multiply in under KF_COMPUTE_AUTO */
  char rope[32];      /* "default", "llama3", "yarn", ... */
  char method[32];    /* conversion method, "" for a model that kvfold did not convert */
  int64_t parameters; /* numbers in the checkpoint, a tied head counted once */
  int layers, hidden, heads, kv_heads, head_dim, intermediate, vocabulary;
  int64_t context;
  int64_t cache_elements_per_token; /* summed over layers */
  int64_t cache_bytes_per_token;    /* the same in bf16 */
  bool tied;
} kf_model_info;

typedef struct kf_model kf_model;

/* Reads the configuration and the tensor table only. Errors: KF_ERROR_INPUT. */
kf_status kf_model_describe(const char *model, kf_model_info *out, kf_error *e);
/* One JSON object describing every layer of MODEL (kind, ranks, rope pairs, cache elements) and the recipe that made it. */
kf_status kf_model_describe_layers(const char *model, kf_text *json, kf_error *e);

/* Loads weights, packs them for the device. options may be NULL. */
kf_status kf_model_open(const char *model, const kf_model_options *options, kf_model **out, kf_error *e);
void kf_model_close(kf_model *m);
const kf_model_info *kf_model_get_info(const kf_model *m);
kf_compute kf_model_compute(const kf_model *m); /* what it really computes in: F32 or BF16 */
const char *kf_model_device(const kf_model *m); /* where it really runs: "cpu" or "cuda" */

/* ------------------------------------------------------------------------------------------------ tokens */

typedef struct kf_tokenizer kf_tokenizer;

enum { KF_ENCODE_PLAIN = 0, KF_ENCODE_SPECIAL = 1 }; /* SPECIAL: add BOS/EOS by the tokenizer's own rule */

/* From the tokenizer.json (and its config) or the GGUF of MODEL. */
kf_status kf_tokenizer_open(const char *model, kf_tokenizer **out, kf_error *e);
void kf_tokenizer_close(kf_tokenizer *t);
int kf_tokenizer_size(const kf_tokenizer *t); /* largest id + 1 */
/* Text that spells an added token becomes that token. Errors: text that is not UTF-8. */
kf_status kf_tokenizer_encode(const kf_tokenizer *t, const char *text, size_t bytes, unsigned flags, kf_ids *out, kf_error *e);
/* skip_special leaves out special tokens (BOS, EOS, ...). Invalid UTF-8 becomes U+FFFD. Errors: an id out of range. */
kf_status kf_tokenizer_decode(const kf_tokenizer *t, const int32_t *ids, size_t count, bool skip_special, kf_text *out,
                              kf_error *e);
/* The vocabulary's own spelling of one id, "" when there is none; owned by the tokenizer. */
const char *kf_tokenizer_piece(const kf_tokenizer *t, int32_t id);
int32_t kf_tokenizer_bos(const kf_tokenizer *t); /* -1: none */
int32_t kf_tokenizer_eos(const kf_tokenizer *t);
bool kf_tokenizer_adds_bos(const kf_tokenizer *t); /* the tokenizer's own rule */
bool kf_tokenizer_adds_eos(const kf_tokenizer *t);

/* Streaming decode: feed ids one at a time; out receives the bytes that are complete UTF-8 so far (possibly none). */
typedef struct kf_decoder kf_decoder;
kf_status kf_decoder_create(const kf_tokenizer *t, bool skip_special, kf_decoder **out, kf_error *e);
kf_status kf_decoder_push(kf_decoder *d, int32_t id, kf_text *out, kf_error *e);
kf_status kf_decoder_finish(kf_decoder *d, kf_text *out, kf_error *e); /* what was held back, with U+FFFD for a broken tail */
void kf_decoder_free(kf_decoder *d);

/* Renders messages (a JSON array of {"role", "content"}) through the model's chat template, as Hugging Face does.
 * Errors: no chat template; a template construct that is not supported; raise_exception() in the template. */
kf_status kf_chat_render(const kf_tokenizer *t, const char *messages_json, bool add_generation_prompt, kf_text *out, kf_error *e);

/* Reads plain text, JSONL ("text" fields joined by a newline; by name .jsonl) and .zst of both. In
 * plain text CR LF and CR become LF. Errors: file and line, also where it is not UTF-8. */
kf_status kf_text_read(const char *path, kf_text *out, kf_error *e);

/* ------------------------------------------------------------------------------------------------ running */

/* Logits of one sequence from its start. out: [count, vocabulary] f32, the caller's. */
kf_status kf_logits(kf_model *m, const int32_t *ids, size_t count, float *out, kf_error *e);

/* Sequences that share the model's weights, each with its own cache. */
typedef struct kf_batch kf_batch;
typedef struct kf_feed {
  int sequence;       /* index in the batch */
  const int32_t *ids; /* [count] new tokens of that sequence */
  size_t count;
} kf_feed;
kf_status kf_batch_create(kf_model *m, int sequences, kf_batch **out, kf_error *e);
void kf_batch_free(kf_batch *b); /* before its model is closed */
/* Appends the tokens of every feed and gives the logits after the last token of each. logits: [feeds, vocabulary]. */
kf_status kf_batch_step(kf_batch *b, const kf_feed *feeds, int count, float *logits, kf_error *e);
void kf_batch_reset(kf_batch *b, int sequence);           /* forget a sequence */
int64_t kf_batch_tokens(const kf_batch *b, int sequence); /* tokens in its cache */
int64_t kf_batch_cache_bytes(const kf_batch *b);          /* what the rows in use take, all sequences and layers */

typedef struct kf_generate_options {
  int max_new_tokens; /* <= 0: up to the model's context */
  bool greedy;        /* else sample: */
  float temperature;  /* 1 */
  float top_p;        /* 1: off */
  int top_k;          /* 0: off */
  uint64_t seed;
  bool skip_special; /* leave special tokens out of the text */
  bool continues;    /* text goes on from the prompt: a space that would be dropped from the start of a text is kept */
  /* Streamed text; may be NULL. */
  void (*on_text)(void *user, const char *piece, size_t bytes);
  void *user;
} kf_generate_options;

typedef struct kf_generation {
  kf_text text;
  kf_ids ids; /* new tokens; generation ends before EOS */
  double prefill_tokens_per_second, decode_tokens_per_second;
  int64_t cache_bytes;
} kf_generation;

kf_status kf_generate(kf_model *m, const kf_tokenizer *t, const int32_t *prompt, size_t count, const kf_generate_options *o,
                      kf_generation *out, kf_error *e);
/* The same within a batch (a conversation): the prompt is appended to what the sequence holds, and so are the new tokens,
 * the last of them excepted (kf_batch_tokens() tells). */
kf_status kf_batch_generate(kf_batch *b, int sequence, const kf_tokenizer *t, const int32_t *prompt, size_t count,
                            const kf_generate_options *o, kf_generation *out, kf_error *e);
void kf_generation_free(kf_generation *g);

typedef struct kf_sample_options {
  int64_t documents;
  int length;        /* tokens of a document at most, BOS included: 512, the context at most */
  float temperature; /* 1 */
  float top_p;       /* 1: off */
  int top_k;         /* 0: off */
  uint64_t seed;
  kf_hooks hooks;
} kf_sample_options;

typedef struct kf_sample_result {
  int64_t documents, tokens; /* tokens: sampled, ends of text not counted */
  double seconds;
} kf_sample_result;

/* Writes documents that the model samples, one JSON object with "text" a line: training data where there is none. FILE appears
 * when it is complete. Zero stands for the default, which is given behind each option. out may be NULL. */
kf_status kf_sample_documents(kf_model *m, const kf_tokenizer *t, const char *path, const kf_sample_options *o,
                              kf_sample_result *out, kf_error *e);

/* ------------------------------------------------------------------------------------------------ evaluation */

typedef enum kf_bos { KF_BOS_AUTO, KF_BOS_YES, KF_BOS_NO } kf_bos;

typedef struct kf_eval_options {
  int window;      /* tokens; 0: the model's context, 2048 at most */
  int stride;      /* 0: window */
  int max_windows; /* 0: all */
  kf_bos bos;
  kf_hooks hooks;
} kf_eval_options;

typedef struct kf_eval_result {
  int64_t tokens, windows; /* tokens: predicted */
  double nll, perplexity;  /* nats a token */
  bool has_reference;
  double reference_nll, kl /* mean KL(reference || model) */, top1_agreement, max_logit_difference;
} kf_eval_result;

/* text is tokenised once without special tokens and cut into windows; see docs/CLI.md for the exact protocol.
 * reference may be NULL. Errors: text too short for one window, vocabularies or devices that differ. */
kf_status kf_eval(kf_model *m, kf_model *reference, const kf_tokenizer *t, const char *text, size_t bytes,
                  const kf_eval_options *o, kf_eval_result *out, kf_error *e);

/* ------------------------------------------------------------------------------------------------ conversion */

/* One KEY=VALUE of --set. */
typedef struct kf_setting {
  const char *key, *value;
} kf_setting;

typedef struct kf_convert_options {
  const char *method; /* "fold", "transmla", ...: kf_method_name(); NULL: "fold" */
  const char *cache;  /* "192", "50%" or NULL: elements per token and layer */
  const char *dtype;  /* "f32", "bf16", "f16" or NULL: the source's */
  const kf_setting *settings;
  int setting_count;
  const char *const *calibration; /* files of text; none: a method that wants text lets the model write it */
  int calibration_count;
  int64_t calibration_tokens; /* 0: the method's default */
  const char *share; /* a directory, made when it is not there, where text that the source writes and statistics of it are kept, and
                        found by the next conversion of the same source. NULL: nothing is */
  int64_t shard_bytes;        /* 0: 1 GiB */
  kf_compute compute;
  int threads;
  kf_hooks hooks;
} kf_convert_options;

typedef struct kf_convert_result {
  int64_t source_cache_elements, cache_elements; /* per token, summed over layers */
  int64_t source_parameters, parameters;
  int layers_converted, layers_kept, layers_resumed;
  /* What was lost, where the method measures it on calibration text that nothing was fitted to; tokens 0: it does not. */
  int64_t held_out_tokens;
  double held_out_kl, held_out_perplexity_ratio; /* mean KL(source || converted) in nats; of perplexities */
  double seconds;
} kf_convert_result;

/* Writes DST, a directory that loads like any other. DST must not exist; until everything is written the work stands in
 * DST.partial, from which the same call resumes after an interruption. Errors: DST exists, an unknown method or key
 * (KF_ERROR_USAGE), a rank or budget that the layers cannot have, a full disk. Deterministic to the byte. */
kf_status kf_convert(const char *src, const char *dst, const kf_convert_options *o, kf_convert_result *out, kf_error *e);

/* A recipe file (YAML): the same fields by the names of the command's options. The options point into *owner. */
typedef struct kf_recipe kf_recipe;
kf_status kf_recipe_read(const char *path, kf_recipe **owner, kf_convert_options *out, kf_error *e);
void kf_recipe_free(kf_recipe *r);

/* One name a method: kf_method_name(0), (1), ... until NULL; and a sentence on it. */
const char *kf_method_name(int index);
const char *kf_method_help(int index);

/* ------------------------------------------------------------------------------------------------ training */

typedef struct kf_train_step {
  int64_t step, steps, tokens;  /* steps done and in all; tokens so far */
  double loss, nll, divergence; /* means of this step: nll and divergence a learnt token, in nats */
  double correct;               /* dpo, ipo: part of the pairs in the right order */
  double rate, gradient_norm, tokens_per_second;
} kf_train_step;

/* The processes that an MPI launcher (mpirun -n N) started to train one model together; NULL: this one is alone. */
typedef struct kf_peers kf_peers;

/* Once in a process; *out is NULL when it was started alone. Errors: it was not, and kvfold was built without MPI or with another
 * one. */
kf_status kf_peers_join(kf_peers **out, kf_error *e);
int kf_peers_rank(const kf_peers *p); /* 0 .. N - 1: rank 0 reads, writes and speaks for all; 0 alone */
/* All call it, each with how it fared: KF_OK if that was everyone's, else the failure of the lowest rank that has one. A failure
 * is final: every later call returns it at once. */
kf_status kf_peers_agree(kf_peers *p, kf_status s, kf_error *e);
/* Waits for the others, which learn whether this one failed; frees p. Nothing else can be called with MPI after it. */
void kf_peers_leave(kf_peers *p, bool failed);

/* Zero and NULL stand for the default, which is given behind each. */
typedef struct kf_train_options {
  const char *objective; /* kf_objective_name(): "ce" */
  const char *teacher; /* MODEL with the same vocabulary that a distillation follows; of dpo and ipo the reference, by default the
                            student as it starts */
  const char *teacher_cache; /* directory that keeps the teacher's predictions, which then need not be made again (forward-kl) */
  int teacher_top;           /* tokens kept of each prediction, the others as one: 64 */
  const char *const *data;
  int data_count;
  const double *weights;  /* [data_count] shares of the files in a step; NULL: by their tokens */
  const char *data_cache; /* directory of tokenised data; kvfold/tokens below the user's cache directory */
  bool skip_bad;          /* records that cannot be used are skipped, with a note; else an error with file and line */
  bool answers;           /* of messages learn the assistant's alone; else every token */
  bool isolated;          /* packed documents do not attend to one another */
  int64_t steps, tokens;  /* length of the run; one of both is given. A step has batch x length tokens. */
  int length;             /* tokens of a sequence: the model's context, 1024 at most */
  int batch;              /* sequences (pairs) a step: 8 */
  int micro;              /* sequences (pairs) in memory at a time: as many as make 4096 tokens */
  double rate;            /* peak learning rate: the objective's, 1e-4 or 5e-7 */
  const char *schedule;   /* "cosine", "linear", "constant", "wsd", "1-sqrt": cosine */
  double warmup, decay;   /* steps, or below 1 a part of them: 0; 0.1 (wsd, 1-sqrt) */
  double beta1, beta2, eps, weight_decay;   /* AdamW: 0.9, 0.95, 1e-8, 0 */
  double clip;                              /* of the gradient's norm: 1; below 0: none */
  bool by_sequence;                         /* divide a step's loss by its sequences, not by its tokens (X-EcoMLA's code does) */
  double ce_weight, kl_weight, temperature; /* of a distillation: 0, 1, 1 */
  double dpo_beta, label_smoothing;         /* 0.1, 0 */
  const char *match;                        /* of align: "layer", "attention", "both" outputs of a layer: layer */
  const char *const *train, *const *freeze; /* patterns of tensor names; NULL: everything is trained */
  int train_count, freeze_count;
  uint64_t seed;
  int64_t save_every;    /* steps between checkpoints: 100 */
  bool resume;           /* go on from OUT.run's checkpoint, which must be of the same settings */
  const char *dtype;     /* "f32", "bf16", "f16" of the weights written: the student's */
  kf_device_kind device; /* of student and teacher */
  kf_compute compute;
  int threads;
  kf_peers *peers; /* train together: all ranks call kf_train with the same arguments, which ends the same way in all */
  kf_hooks hooks;
  /* After every step, on rank 0; may be NULL. */
  void (*on_step)(void *user, const kf_train_step *step);
  void *user;
} kf_train_options;

typedef struct kf_train_result {
  int64_t steps, tokens;
  double first_loss, last_loss; /* means of the first and the last tenth of the steps that this call made */
  int64_t trained_parameters;
  double seconds, tokens_per_second;
} kf_train_result;

/* Trains STUDENT and writes OUT, a directory that loads like any other. Until it is written the run stands in OUT.run: its
 * checkpoint, put in place by one rename each time, and train.jsonl, one object a step. The same input gives the same bytes, also
 * when it was interrupted and resumed. Errors: OUT exists; OUT.run exists and resume was not asked; another vocabulary; data that
 * cannot be used; a loss that is not finite (the step, the first tensor concerned; the checkpoint stays); a device or layer that
 * does not train; a batch that the ranks do not divide (KF_ERROR_USAGE). out may be NULL. */
kf_status kf_train(const char *student, const char *out_path, const kf_train_options *o, kf_train_result *out, kf_error *e);

/* A recipe file (YAML): fields of kf_train_options by their names, those that say where and how a run is made (teacher, caches,
 * resume, compute, hooks) left out. The options point into *owner. Errors: an unknown key, with the nearest known one. */
typedef struct kf_train_recipe kf_train_recipe;
kf_status kf_train_recipe_read(const char *path, kf_train_recipe **owner, kf_train_options *out, kf_error *e);
void kf_train_recipe_free(kf_train_recipe *r);

typedef struct kf_init_options {
  const char *tokenizer; /* MODEL whose tokenizer is taken along; NULL: none */
  const char *dtype;     /* "f32" (default), "bf16", "f16" */
  uint64_t seed;
  kf_hooks hooks;
} kf_init_options;

/* Writes DST, a model with random weights: matrices normal with the configuration's initializer_range (0.02), norms 1, biases 0.
 * config: a config.json, or the directory that has one. parameters may be NULL. Errors: DST exists; a configuration that cannot
 * be; a tokenizer of more tokens than the vocabulary has. */
kf_status kf_init(const char *config, const char *dst, const kf_init_options *o, int64_t *parameters, kf_error *e);

/* One name an objective: kf_objective_name(0), (1), ... until NULL; and a sentence on it. */
const char *kf_objective_name(int index);
const char *kf_objective_help(int index);

/* ------------------------------------------------------------------------------------------------ export */

typedef struct kf_export_options {
  const char *format; /* "deepseek-v3", "gguf"; NULL: gguf when OUT ends in ".gguf", else deepseek-v3 */
  const char *dtype;  /* "f32", "bf16", "f16" and "q8_0" (both gguf only) or NULL: the model's */
  bool check;         /* only say whether the model can be expressed: nothing is written, OUT may be NULL */
  kf_hooks hooks;
  int pad;            /* latents, filled up with zeros, beside a RoPE key of 64: 256 or 512 for kernels made for these; 0: none */
  const char *source; /* gguf only: the GGUF file that was converted; tensors that the conversion left alone are copied as it
                         stores them, quantised or not. NULL: none */
  bool f16_latents;   /* latents in the basis that loses least where an engine adds them up in f16 (llama.cpp's default on a CPU);
                         found on 2560 tokens that the model writes: it runs, and is in memory as a whole */
} kf_export_options;

typedef struct kf_export_result {
  char format[16], dtype[8];
  int64_t tensors, bytes; /* bytes: of the weights */
  int64_t copied;         /* of the tensors, from the source as they are stored there */
} kf_export_result;

/* Writes a model that kvfold converted for engines that know nothing of kvfold: a directory that loads as DeepseekV3ForCausalLM
 * without custom code, or a GGUF file of architecture deepseek2. OUT must not exist; it appears when it is complete. out may be
 * NULL. Errors: OUT exists; a format or dtype that is not known, a pad below the model's rank (KF_ERROR_USAGE); a source of another
 * model; a model that DeepSeek's graph cannot express (a RoPE key for each head, a frequency used twice, biases, q/k norms, sliding
 * windows, dynamic or longrope scaling, grouped layers), or with f16_latents one whose latents have a norm. llama3's RoPE scaling
 * becomes YaRN, with a note on what differs. */
kf_status kf_export(const char *model, const char *out_path, const kf_export_options *o, kf_export_result *out, kf_error *e);

/* Converts SRC and exports the result to OUT in one go; OUT.converted, a directory, is there meanwhile (OUT.converted.partial is
 * where an interrupted conversion resumes). A GGUF source is the export's `source` unless one is given. target, converted and
 * exported may be NULL. Errors: those of kf_convert and kf_export. */
kf_status kf_convert_export(const char *src, const char *out_path, const kf_convert_options *o, const kf_export_options *target,
                            kf_convert_result *converted, kf_export_result *exported, kf_error *e);

/* ------------------------------------------------------------------------------------------------ comparison, report */

typedef struct kf_compare_options {
  kf_eval_options eval;       /* its hooks are used for all */
  const int *needle_contexts; /* tokens; NULL: 512 and 2048, as far as model and text reach */
  int needle_context_count;   /* 0 with contexts given: no needles */
  const int *needle_depths;   /* 0 to 100 per cent; NULL: 0, 25, 50, 75, 100 */
  int needle_depth_count;
  kf_compute compute;
  int threads;
} kf_compare_options;

/* Measures SRC and what was made of it on the text of a file, and gives one JSON object: docs/CLI.md has its keys. SRC stays
 * open, the others are opened one after another. o may be NULL. Errors: those of kf_eval and kf_model_open; a text that one of
 * the models was calibrated on. */
kf_status kf_compare(const char *src, const char *const *dst, int dst_count, const char *text, const kf_compare_options *o,
                     kf_text *json, kf_error *e);

typedef struct kf_sweep_options {
  const char *const *methods, *const *caches; /* every method at every size */
  int method_count, cache_count;
  kf_convert_options convert; /* for all; method and cache are not read; a setting "METHOD.KEY" is for that method alone */
  kf_compare_options compare;
  const char *scratch; /* a directory: models are made in a new one within it, each removed once it is measured */
  const char *keep;    /* a directory, made when it is not there: models are made here and stay. NULL: none stays */
} kf_sweep_options;

/* Converts SRC by every method at every cache size and compares them. A conversion that fails becomes an entry of "failed".
 * Errors: those of kf_compare; an unknown method (KF_ERROR_USAGE); all conversions failed. */
kf_status kf_sweep(const char *src, const char *text, const kf_sweep_options *o, kf_text *json, kf_error *e);

/* Writes a self-contained HTML page that shows what kf_compare or kf_sweep gave. Plots are drawn by gnuplot; where there is
 * none the page has the tables alone, and says so. */
kf_status kf_report_write(const char *path, const char *json, size_t bytes, const kf_hooks *hooks, kf_error *e);

/* Draws loss, learning rate and gradient norm of training runs (what kf_train wrote, or its OUT while it runs), and held-out
 * perplexities where held-out.jsonl has some, over tokens or steps. PATH ends in .svg or .png. Errors: no gnuplot, a log that is
 * empty or broken. */
kf_status kf_plot_runs(const char *const *runs, int count, const char *path, bool by_steps, kf_error *e);

/* Writes one f32 tensor [rows, columns] as a safetensors file (used by `kvfold logits`). */
kf_status kf_write_tensor(const char *path, const char *name, const float *data, int64_t rows, int64_t columns, kf_error *e);

#ifdef __cplusplus
}
#endif
#endif
