#include "train/documents.h"

#include <stdlib.h>
#include <string.h>

void kf_documents_free(kf_documents *d) {
  kf_buffer_free(&d->ids);
  kf_buffer_free(&d->learnt);
  kf_buffer_free(&d->end);
}

/* ---------------------------------------------------------------------------------------------- tokens */

static kf_status add_ids(kf_documents *d, const int32_t *ids, size_t count, bool learnt, kf_error *e) {
  char mark = learnt;
  KF_TRY(kf_buffer_add(&d->ids, ids, count * sizeof *ids, e));
  for (size_t i = 0; i < count; i++) KF_TRY(kf_buffer_add(&d->learnt, &mark, 1, e));
  return KF_OK;
}

static kf_status add_text(kf_documents *d, const char *text, size_t bytes, bool learnt, kf_error *e) {
  kf_ids ids = {0};
  KF_TRY(kf_tokenizer_encode(d->tokenizer, text, bytes, KF_ENCODE_PLAIN, &ids, e));
  kf_status s = add_ids(d, ids.data, ids.count, learnt, e);
  kf_ids_free(&ids);
  return s;
}

static kf_status add_special(kf_documents *d, int32_t id, bool learnt, kf_error *e) {
  return id >= 0 ? add_ids(d, &id, 1, learnt, e) : KF_OK;
}

static int32_t bos_of(const kf_documents *d) {
  return kf_tokenizer_adds_bos(d->tokenizer) ? kf_tokenizer_bos(d->tokenizer) : -1;
}

static kf_status end_document(kf_documents *d, kf_error *e) {
  int64_t end = (int64_t)(d->ids.bytes / sizeof(int32_t));
  return kf_buffer_add(&d->end, &end, sizeof end, e);
}

/* ---------------------------------------------------------------------------------------------- messages */

/* ShareGPT's names become those of chat templates. */
static json_t *message_of(const json_t *m) {
  static const char *const roles[][2] = {{"human", "user"}, {"gpt", "assistant"}};
  const char *role = json_string_value(json_object_get(m, "role"));
  const json_t *content = json_object_get(m, "content");
  if (!role) role = json_string_value(json_object_get(m, "from"));
  if (!content) content = json_object_get(m, "value");
  for (size_t i = 0; role && i < sizeof roles / sizeof *roles; i++)
    if (strcmp(role, roles[i][0]) == 0) role = roles[i][1];
  return role && json_is_string(content) ? json_pack("{s:s,s:O}", "role", role, "content", content) : NULL;
}

/* A new list, NULL when one of them is not a message. A single message counts as a list of one. */
static json_t *messages_of(const json_t *value) {
  json_t *list = json_array(), *m;
  if (json_is_object(value)) {
    if ((m = message_of(value))) json_array_append_new(list, m);
  }
  size_t i;
  const json_t *item;
  bool bad = !json_is_array(value) && json_array_size(list) == 0;
  json_array_foreach(value, i, item) {
    m = message_of(item);
    if (m)
      json_array_append_new(list, m);
    else
      bad = true;
  }
  if (!bad && json_array_size(list)) return list;
  json_decref(list);
  return NULL;
}

/* The first `count` messages as text. */
static kf_status render(const kf_documents *d, const json_t *messages, size_t count, bool prompt, kf_text *out, kf_error *e) {
  json_t *part = json_array();
  for (size_t i = 0; i < count; i++) json_array_append(part, json_array_get(messages, i));
  char *json = json_dumps(part, JSON_COMPACT);
  json_decref(part);
  if (!json) return kf_fail(e, KF_ERROR_MEMORY, "out of memory for a conversation");
  kf_status s = kf_chat_render(d->tokenizer, json, prompt, out, e);
  free(json);
  return s;
}

static bool is_answer(const json_t *messages, size_t i) {
  const char *role = json_string_value(json_object_get(json_array_get(messages, i), "role"));
  return role && strcmp(role, "assistant") == 0;
}

/* The rendered text in pieces: the answers from `first` on are learnt, what is between them is not. The text up to an answer
 * is the conversation before it with the template's prompt for one. */
static kf_status add_answers(kf_documents *d, const json_t *messages, size_t first, kf_error *e) {
  size_t done = 0, count = json_array_size(messages);
  kf_text before = {0}, after = {0};
  kf_status s = KF_OK;
  for (size_t i = first; i < count && s == KF_OK; i++) {
    if (!is_answer(messages, i)) continue;
    kf_text_free(&before);
    kf_text_free(&after);
    KF_GO(render(d, messages, i, true, &before, e));
    KF_GO(render(d, messages, i + 1, false, &after, e));
    if (before.bytes > after.bytes || memcmp(before.data, after.data, before.bytes) != 0 || done > before.bytes)
      KF_GO(
          kf_fail(e, KF_ERROR_INPUT, "the chat template changes earlier messages with later ones: answers cannot be told apart"));
    KF_GO(add_text(d, after.data + done, before.bytes - done, false, e));
    KF_GO(add_text(d, after.data + before.bytes, after.bytes - before.bytes, true, e));
    done = after.bytes;
  }
done:
  kf_text_free(&before);
  kf_text_free(&after);
  return s;
}

static kf_status add_conversation(kf_documents *d, const json_t *messages, kf_error *e) {
  if (d->options->learnt == KF_LEARN_ANSWERS) return add_answers(d, messages, 0, e);
  kf_text text = {0};
  KF_TRY(render(d, messages, json_array_size(messages), false, &text, e));
  kf_status s = add_text(d, text.data, text.bytes, true, e);
  kf_text_free(&text);
  return s;
}

/* ---------------------------------------------------------------------------------------------- pairs */

/* prompt and answer as plain texts: BOS, both, EOS. */
static kf_status add_plain_pair(kf_documents *d, const json_t *prompt, const json_t *answer, kf_error *e) {
  KF_TRY(add_special(d, bos_of(d), false, e));
  KF_TRY(add_text(d, json_string_value(prompt), json_string_length(prompt), false, e));
  KF_TRY(add_text(d, json_string_value(answer), json_string_length(answer), true, e));
  return add_special(d, kf_tokenizer_eos(d->tokenizer), true, e);
}

/* The prompt's messages (before; may be NULL when the answer is a whole conversation) and the answer's. */
static kf_status add_chat_pair(kf_documents *d, const json_t *before, const json_t *answer, kf_error *e) {
  json_t *all = before ? json_copy((json_t *)(uintptr_t)before) : json_array();
  if (!all) return kf_fail(e, KF_ERROR_MEMORY, "out of memory for a conversation");
  json_array_extend(all, (json_t *)(uintptr_t)answer);
  size_t last = json_array_size(all) - 1;
  kf_status s = is_answer(all, last) ? add_answers(d, all, last, e)
                                     : kf_fail(e, KF_ERROR_INPUT, "the last message of a preferred text is not the assistant's");
  json_decref(all);
  return s;
}

static kf_status add_side(kf_documents *d, const json_t *prompt, const json_t *answer, kf_error *e) {
  if (json_is_string(prompt) && json_is_string(answer)) {
    KF_TRY(add_plain_pair(d, prompt, answer, e));
    return end_document(d, e);
  }
  json_t *before = messages_of(prompt), *after = messages_of(answer);
  kf_status s = after && (before || !prompt)
                    ? add_chat_pair(d, before, after, e)
                    : kf_fail(e, KF_ERROR_INPUT, "prompt, chosen and rejected are not all texts or messages");
  json_decref(before);
  json_decref(after);
  return s == KF_OK ? end_document(d, e) : s;
}

static kf_status add_pair(kf_documents *d, const json_t *o, kf_error *e) {
  const json_t *prompt = json_object_get(o, "prompt"), *chosen = json_object_get(o, "chosen"),
               *rejected = json_object_get(o, "rejected");
  if (!prompt) prompt = json_object_get(o, "conversations");
  if (!chosen || !rejected) return kf_fail(e, KF_ERROR_INPUT, "no \"chosen\" and \"rejected\"");
  KF_TRY(add_side(d, prompt, chosen, e));
  return add_side(d, prompt, rejected, e);
}

/* ---------------------------------------------------------------------------------------------- a record */

static kf_status add_plain(kf_documents *d, const char *text, size_t bytes, kf_error *e) {
  KF_TRY(add_special(d, bos_of(d), true, e));
  KF_TRY(add_text(d, text, bytes, true, e));
  return add_special(d, kf_tokenizer_eos(d->tokenizer), true, e);
}

static kf_status add_record(kf_documents *d, const kf_record *r, kf_error *e) {
  if (d->options->pairs) return r->object ? add_pair(d, r->object, e) : kf_fail(e, KF_ERROR_INPUT, "plain text holds no pairs");
  const json_t *text = json_object_get(r->object, "text"), *chat = json_object_get(r->object, "messages");
  kf_status s;
  if (!chat) chat = json_object_get(r->object, "conversations");
  json_t *messages = chat ? messages_of(chat) : NULL;
  if (!r->object)
    s = add_plain(d, r->text, r->bytes, e);
  else if (json_is_string(text))
    s = add_plain(d, json_string_value(text), json_string_length(text), e);
  else if (messages)
    s = add_conversation(d, messages, e);
  else
    s = kf_fail(e, KF_ERROR_INPUT, "neither a string \"text\" nor a list \"messages\" or \"conversations\"");
  json_decref(messages);
  return s == KF_OK ? end_document(d, e) : s;
}

kf_status kf_documents_add(void *documents, const kf_record *r, kf_error *e) {
  kf_documents *d = documents;
  size_t ids = d->ids.bytes, learnt = d->learnt.bytes, end = d->end.bytes;
  kf_error why = {0};
  kf_status s = add_record(d, r, &why);
  if (s == KF_OK) return KF_OK;
  if (s == KF_ERROR_INPUT && d->options->skip) {
    d->ids.bytes = ids, d->learnt.bytes = learnt, d->end.bytes = end;
    d->skipped++;
    return KF_OK;
  }
  return kf_fail(e, s, "%s:%lld: %s", r->path, (long long)r->line, why.message);
}
