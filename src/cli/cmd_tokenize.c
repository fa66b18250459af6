/* kvfold tokenize: text to ids and pieces, and back. */
#include "options.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typedef struct arguments {
  cli_common common;
  const char *file;
  bool special, decode;
} arguments;

static const cli_option options[] = {
    {"file", "FILE", CLI_TEXT, offsetof(arguments, file), 0, 0,
     "take the text from a file: plain text, JSONL (the \"text\" fields joined by a newline), or .zst of both"},
    {"special", NULL, CLI_FLAG, offsetof(arguments, special), 0, 0, "add BOS and EOS by the tokenizer's own rule"},
    {"decode", NULL, CLI_FLAG, offsetof(arguments, decode), 0, 0,
     "the other way: TEXT holds ids separated by commas or spaces, their text is printed (special tokens are kept)"},
    CLI_JSON_OPTION,
    CLI_END_OPTION,
};

static int encode(const arguments *a, const kf_tokenizer *t, const kf_text *text) {
  kf_error e = {0};
  kf_ids ids = {0};
  if (kf_tokenizer_encode(t, text->data, text->bytes, a->special ? KF_ENCODE_SPECIAL : KF_ENCODE_PLAIN, &ids, &e) != KF_OK)
    return cli_fail(&e);
  int code = CLI_OK;
  if (a->common.json) {
    json_t *o = json_object(), *pieces = json_array();
    cli_set_ids(o, "ids", ids.data, ids.count);
    for (size_t i = 0; i < ids.count; i++) json_array_append_new(pieces, json_string(kf_tokenizer_piece(t, ids.data[i])));
    json_object_set_new(o, "pieces", pieces);
    code = cli_print_json(o);
  } else {
    for (size_t i = 0; i < ids.count; i++) printf("%" PRId32 "\t%s\n", ids.data[i], kf_tokenizer_piece(t, ids.data[i]));
  }
  kf_ids_free(&ids);
  return code;
}

static int decode(const arguments *a, const kf_tokenizer *t, const kf_text *text) {
  kf_error e = {0};
  kf_ids ids;
  kf_text out = {0};
  if (!cli_parse_ids(text->data, &ids)) return CLI_USAGE;
  kf_status s = kf_tokenizer_decode(t, ids.data, ids.count, false, &out, &e);
  kf_ids_free(&ids);
  if (s != KF_OK) return cli_fail(&e);
  int code = CLI_OK;
  if (a->common.json) {
    json_t *o = json_object();
    cli_set_text(o, "text", out.data, out.bytes);
    code = cli_print_json(o);
  } else {
    fwrite(out.data, 1, out.bytes, stdout);
    putchar('\n');
  }
  kf_text_free(&out);
  return code;
}

static int run(void *p) {
  arguments *a = p;
  kf_error e = {0};
  kf_text owned = {0}, text;
  kf_tokenizer *t = NULL;
  const char *word = a->common.operand[1];
  if (a->file && word) return cli_say(CLI_USAGE, "tokenize takes TEXT or --file, not both");
  if (kf_tokenizer_open(a->common.operand[0], &t, &e) != KF_OK) return cli_fail(&e);
  kf_status s = a->file ? kf_text_read(a->file, &owned, &e) : word ? KF_OK : cli_read_stdin(&owned, &e);
  text = word ? (kf_text){(char *)word, strlen(word)} : owned;
  if (!text.data) text.data = "";
  int code = s != KF_OK ? cli_fail(&e) : a->decode ? decode(a, t, &text) : encode(a, t, &text);
  kf_text_free(&owned);
  kf_tokenizer_close(t);
  return code;
}

const cli_command cli_tokenize = {
    .name = "tokenize",
    .summary = "turn text into token ids, or ids into text",
    .operands = "MODEL [TEXT]",
    .least_operands = 1,
    .most_operands = 2,
    .options = options,
    .bytes = sizeof(arguments),
    .run = run,
    .description = "Encodes TEXT, a file, or standard input with the tokenizer of MODEL. Text that spells an added token becomes "
                   "that token. As text, prints one token a line: the id, a tab, the vocabulary's own spelling.",
    .keys = "ids     array of token ids\n"
            "pieces  array of strings, the vocabulary's own spelling of each\n"
            "text    with --decode instead of both",
    .examples = "kvfold tokenize examples/books-7m \"Once upon a time\"\n"
                "kvfold tokenize examples/books-7m --file examples/books-7m/held-out.txt --json\n"
                "kvfold tokenize examples/books-7m --decode 403,407,261",
};
