/* The public face: opening, encoding, decoding. */
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "text/tokenizer_impl.h"
#include "text/utf8.h"

/* ------------------------------------------------------------------------------------------------ opening */

kf_status kf_tokenizer_open(const char *model, kf_tokenizer **out, kf_error *e) {
  char path[KF_PATH];
  KF_TRY(kf_locate(model, path, e));
  if (kf_is_directory(path)) return kf_tokenizer_from_directory(path, out, e);
  kf_gguf *g;
  KF_TRY(kf_gguf_open(path, &g, e));
  kf_status s = kf_tokenizer_from_gguf(g, out, e);
  kf_gguf_close(g);
  return s;
}

void kf_tokenizer_close(kf_tokenizer *t) {
  if (!t) return;
  kf_bpe_free(t->bpe);
  kf_normalizer_free(t->normalizer);
  kf_pretokenizer_free(t->pretokenizer);
  kf_detokenizer_free(t->detokenizer);
  kf_added_set_free(t->raw);
  kf_added_set_free(t->normalized);
  free(t->added);
  kf_vocab_free(&t->vocab);
  kf_arena_free(&t->arena);
  kf_text_free(&t->source);
  kf_text_free(&t->config);
  free(t);
}

/* ------------------------------------------------------------------------------------------------ what it is */

int kf_tokenizer_size(const kf_tokenizer *t) {
  return t->vocab.size;
}

const char *kf_tokenizer_piece(const kf_tokenizer *t, int32_t id) {
  return id >= 0 && id < t->vocab.size && t->vocab.pieces[id].text ? t->vocab.pieces[id].text : "";
}

const char *kf_tokenizer_special(const kf_tokenizer *t, const char *which) {
  static const char *const names[KF_SPECIALS] = {"bos_token", "eos_token", "pad_token", "unk_token"};
  for (int k = 0; k < KF_SPECIALS; k++)
    if (!strcmp(which, names[k])) return t->special[k];
  return NULL;
}

int32_t kf_tokenizer_special_id(const kf_tokenizer *t, kf_special_kind k) {
  return t->special[k] ? kf_vocab_find(&t->vocab, t->special[k], strlen(t->special[k])) : -1;
}

int32_t kf_tokenizer_bos(const kf_tokenizer *t) {
  int32_t id = kf_tokenizer_special_id(t, KF_SPECIAL_BOS);
  return id < 0 && t->prefix_count ? t->prefix[0] : id;
}

int32_t kf_tokenizer_eos(const kf_tokenizer *t) {
  int32_t id = kf_tokenizer_special_id(t, KF_SPECIAL_EOS);
  return id < 0 && t->suffix_count ? t->suffix[t->suffix_count - 1] : id;
}

static bool contains(const int32_t *list, int count, int32_t id) {
  for (int i = 0; i < count; i++)
    if (list[i] == id) return true;
  return false;
}

bool kf_tokenizer_adds_bos(const kf_tokenizer *t) {
  return contains(t->prefix, t->prefix_count, kf_tokenizer_bos(t));
}

bool kf_tokenizer_adds_eos(const kf_tokenizer *t) {
  return contains(t->suffix, t->suffix_count, kf_tokenizer_eos(t));
}

const char *kf_tokenizer_chat_template(const kf_tokenizer *t) {
  return t->chat_template;
}

/* ------------------------------------------------------------------------------------------------ encoding */

typedef struct encoding {
  const kf_tokenizer *t;
  kf_bpe_work *bpe;
  kf_pretokenizer_work *pre;
  kf_buffer normal; /* the stretch that is being worked on, normalised */
} encoding;

static kf_status take_word(void *user, const char *word, size_t bytes, kf_error *e) {
  return kf_bpe_encode(((encoding *)user)->bpe, word, bytes, e);
}

typedef kf_status (*stretch_worker)(encoding *x, const char *text, size_t bytes, bool first, kf_error *e);

/* Added tokens of the set become ids, what lies between goes on to `between`. */
static kf_status scan(encoding *x, const kf_added_set *set, const char *text, size_t bytes, bool first, stretch_worker between,
                      kf_error *e) {
  size_t from = 0, taken = 0;
  kf_stretch s;
  while (set && kf_added_next(set, text, bytes, &from, taken, &s)) {
    if (s.start > taken) KF_TRY(between(x, text + taken, s.start - taken, first && !taken, e));
    KF_TRY(kf_bpe_add_id(x->bpe, s.token->id, e));
    taken = s.end;
  }
  return taken < bytes ? between(x, text + taken, bytes - taken, first && !taken, e) : KF_OK;
}

static kf_status encode_words(encoding *x, const char *text, size_t bytes, bool first, kf_error *e) {
  return kf_pretokenizer_run(x->pre, text, bytes, first, e);
}

static kf_status encode_raw(encoding *x, const char *text, size_t bytes, bool first, kf_error *e) {
  if (!x->t->normalizer) return scan(x, x->t->normalized, text, bytes, first, encode_words, e);
  x->normal.bytes = 0;
  KF_TRY(kf_normalizer_run(x->t->normalizer, text, bytes, &x->normal, e));
  return scan(x, x->t->normalized, x->normal.data ? x->normal.data : "", x->normal.bytes, first, encode_words, e);
}

kf_status kf_tokenizer_encode(const kf_tokenizer *t, const char *text, size_t bytes, unsigned flags, kf_ids *out, kf_error *e) {
  encoding x = {.t = t};
  kf_status s;
  bool special = flags & KF_ENCODE_SPECIAL;
  size_t valid = kf_utf8_valid(text, bytes);
  if (valid < bytes)
    return kf_fail(e, KF_ERROR_INPUT, "the text is not UTF-8: byte 0x%02x at offset %zu", (uint8_t)text[valid], valid);
  KF_GO(kf_bpe_work_create(t->bpe, bytes, &x.bpe, e));
  KF_GO(kf_pretokenizer_work_create(t->pretokenizer, take_word, &x, &x.pre, e));
  for (int i = 0; special && i < t->prefix_count; i++) KF_GO(kf_bpe_add_id(x.bpe, t->prefix[i], e));
  KF_GO(scan(&x, t->raw, text, bytes, true, encode_raw, e));
  for (int i = 0; special && i < t->suffix_count; i++) KF_GO(kf_bpe_add_id(x.bpe, t->suffix[i], e));
  kf_bpe_work_take(x.bpe, out);
done:
  kf_bpe_work_free(x.bpe);
  kf_pretokenizer_work_free(x.pre);
  kf_buffer_free(&x.normal);
  return s;
}

/* ------------------------------------------------------------------------------------------------ decoding */

static void to_text(kf_buffer *b, kf_text *out) {
  *out = (kf_text){b->data, b->bytes};
  *b = (kf_buffer){0};
}

static kf_status push(const kf_tokenizer *t, kf_detokenizing *d, int32_t id, bool skip_special, kf_buffer *out, kf_error *e) {
  if (id < 0 || id >= t->vocab.size)
    return kf_fail(e, KF_ERROR_INPUT, "token id %d is outside the vocabulary, 0..%d", id, t->vocab.size - 1);
  const kf_piece *p = &t->vocab.pieces[id];
  if (!p->text || (skip_special && t->is_special[id])) return KF_OK;
  return kf_detokenizing_push(d, p->text, p->bytes, out, e);
}

kf_status kf_tokenizer_decode(const kf_tokenizer *t, const int32_t *ids, size_t count, bool skip_special, kf_text *out,
                              kf_error *e) {
  kf_detokenizing d;
  kf_buffer text = {0};
  kf_status s;
  kf_detokenizing_start(&d, t->detokenizer, true);
  KF_GO(kf_buffer_add(&text, "", 0, e));
  for (size_t i = 0; i < count; i++) KF_GO(push(t, &d, ids[i], skip_special, &text, e));
  KF_GO(kf_detokenizing_finish(&d, &text, e));
  to_text(&text, out);
done:
  kf_detokenizing_free(&d);
  kf_buffer_free(&text);
  return s;
}

struct kf_decoder {
  const kf_tokenizer *t;
  bool skip_special;
  kf_detokenizing state;
};

kf_status kf_decoder_create(const kf_tokenizer *t, bool skip_special, kf_decoder **out, kf_error *e) {
  kf_decoder *d;
  KF_NEW(d, 1, e);
  d->t = t, d->skip_special = skip_special;
  kf_detokenizing_start(&d->state, t->detokenizer, false);
  *out = d;
  return KF_OK;
}

void kf_decoder_free(kf_decoder *d) {
  if (!d) return;
  kf_detokenizing_free(&d->state);
  free(d);
}

kf_status kf_decoder_push(kf_decoder *d, int32_t id, kf_text *out, kf_error *e) {
  kf_buffer text = {0};
  kf_status s;
  KF_GO(kf_buffer_add(&text, "", 0, e));
  KF_GO(push(d->t, &d->state, id, d->skip_special, &text, e));
  to_text(&text, out);
done:
  kf_buffer_free(&text);
  return s;
}

kf_status kf_decoder_finish(kf_decoder *d, kf_text *out, kf_error *e) {
  kf_buffer text = {0};
  kf_status s;
  KF_GO(kf_buffer_add(&text, "", 0, e));
  KF_GO(kf_detokenizing_finish(&d->state, &text, e));
  to_text(&text, out);
done:
  kf_buffer_free(&text);
  return s;
}
