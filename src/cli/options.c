#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cli_say(int code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("kvfold: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  return code;
}

int cli_fail(const kf_error *e) {
  return cli_say(e->status == KF_ERROR_USAGE ? CLI_USAGE : CLI_FAILED, "%s", e->message);
}

/* ------------------------------------------------------------------------------------------------ parsing */

static const cli_option *find_option(const cli_command *c, const char *name, size_t bytes) {
  for (const cli_option *o = c->options; o->name; o++)
    if (strlen(o->name) == bytes && !memcmp(o->name, name, bytes)) return o;
  return NULL;
}

static bool wrong_value(const cli_option *o, const char *text, const char *expected) {
  cli_say(CLI_USAGE, "--%s takes %s, not '%s'", o->name, expected, text);
  return false;
}

static bool set_number(const cli_option *o, const char *text, void *target) {
  char *end = NULL;
  errno = 0;
  if (o->kind == CLI_REAL || o->kind == CLI_DOUBLE) {
    double x = strtod(text, &end);
    if (end == text || *end || errno || !isfinite(x)) return wrong_value(o, text, "a number");
    if (x < o->low || x > o->high) goto range;
    if (o->kind == CLI_REAL)
      *(float *)target = (float)x;
    else
      *(double *)target = x;
    return true;
  }
  if (o->kind == CLI_SEED) {
    unsigned long long x = strtoull(text, &end, 10);
    if (end == text || *end || errno || *text == '-') return wrong_value(o, text, "a whole number from 0 up");
    *(uint64_t *)target = x;
    return true;
  }
  long long x = strtoll(text, &end, 10);
  if (end == text || *end || errno) return wrong_value(o, text, "a whole number");
  if ((double)x < o->low || (double)x > o->high) goto range;
  if (o->kind == CLI_INT)
    *(int *)target = (int)x;
  else
    *(int64_t *)target = x;
  return true;
range:
  cli_say(CLI_USAGE, "--%s takes a number from %.12g to %.12g, not %s", o->name, o->low, o->high, text);
  return false;
}

static bool set_choice(const cli_option *o, const char *text, int *target) {
  size_t bytes = strlen(text);
  int index = 0;
  for (const char *p = o->value;; p++, index++) {
    size_t n = strcspn(p, "|");
    if (n == bytes && !memcmp(p, text, n)) {
      *target = index;
      return true;
    }
    p += n;
    if (!*p) return wrong_value(o, text, o->value);
  }
}

static bool set_list(cli_list *list, const char *text) {
  const char **more = realloc(list->item, (size_t)(list->count + 1) * sizeof *more);
  if (!more) {
    cli_say(CLI_FAILED, "out of memory");
    return false;
  }
  list->item = more;
  list->item[list->count++] = text;
  return true;
}

static bool set_option(const cli_option *o, const char *text, void *arguments) {
  void *target = (char *)arguments + o->offset;
  switch (o->kind) {
  case CLI_FLAG: *(bool *)target = true; return true;
  case CLI_TEXT: *(const char **)target = text; return true;
  case CLI_CHOICE: return set_choice(o, text, target);
  case CLI_LIST: return set_list(target, text);
  default: return set_number(o, text, target);
  }
}

/* One "--name", "--name=value" or "--name value" at argv[*at]; *list is the list option that further words belong to. */
static bool parse_option(const cli_command *c, int argc, char **argv, int *at, const cli_option **list, void *arguments) {
  const char *name = argv[*at] + 2;
  size_t bytes = strcspn(name, "=");
  const cli_option *o = argv[*at][1] == '-' ? find_option(c, name, bytes) : NULL;
  if (!o) {
    cli_say(CLI_USAGE, "unknown option %.*s", (int)strcspn(argv[*at], "="), argv[*at]);
    return false;
  }
  *list = o->kind == CLI_LIST ? o : NULL;
  const char *value = name[bytes] == '=' ? name + bytes + 1 : NULL;
  if (o->kind == CLI_FLAG && value) {
    cli_say(CLI_USAGE, "--%s takes no value", o->name);
    return false;
  }
  if (o->kind != CLI_FLAG && !value) {
    if (*at + 1 >= argc) {
      cli_say(CLI_USAGE, "--%s needs a value: %s", o->name, o->value);
      return false;
    }
    value = argv[++*at];
  }
  return set_option(o, value, arguments);
}

static bool parse_words(const cli_command *c, int argc, char **argv, void *arguments) {
  cli_common *common = arguments;
  const cli_option *list = NULL;
  bool options = true;
  for (int i = 0; i < argc; i++) {
    if (options && !strcmp(argv[i], "--")) {
      options = false;
      list = NULL;
    } else if (options && argv[i][0] == '-' && argv[i][1]) {
      if (!parse_option(c, argc, argv, &i, &list, arguments)) return false;
    } else if (common->operands < c->most_operands) {
      common->operand[common->operands++] = argv[i];
    } else if (list) {
      if (!set_option(list, argv[i], arguments)) return false;
    } else {
      cli_say(CLI_USAGE, "one word too many: '%s'", argv[i]);
      return false;
    }
  }
  if (common->operands >= c->least_operands) return true;
  cli_say(CLI_USAGE, "%s needs %s", c->name, c->operands);
  return false;
}

bool cli_parse(const cli_command *c, int argc, char **argv, void *arguments) {
  if (parse_words(c, argc, argv, arguments)) return true;
  cli_say(CLI_USAGE, "see kvfold %s --help", c->name);
  return false;
}

void cli_free_lists(const cli_command *c, void *arguments) {
  for (const cli_option *o = c->options; o->name; o++)
    if (o->kind == CLI_LIST) free(((cli_list *)((char *)arguments + o->offset))->item);
}

/* ------------------------------------------------------------------------------------------------ help */

/* Words of `text` filled into lines of at most 96 columns after `indent` spaces. */
static void fill(const char *text, int indent) {
  int column = 0;
  for (const char *p = text; *p;) {
    int n = (int)strcspn(p, " ");
    if (column && column + 1 + n > 96) {
      putchar('\n');
      column = 0;
    }
    column += column ? printf(" %.*s", n, p) : printf("%*s%.*s", indent, "", n, p);
    p += n;
    p += *p == ' ';
  }
  putchar('\n');
}

/* Lines of `text` as they are, behind seven spaces. */
static void lines(const char *title, const char *text) {
  if (!text) return;
  printf("\n%s\n", title);
  for (const char *p = text; *p;) {
    int n = (int)strcspn(p, "\n");
    if (n)
      printf("       %.*s\n", n, p);
    else
      putchar('\n');
    p += n;
    p += *p == '\n';
  }
}

void cli_help(const cli_command *c) {
  printf("NAME\n       kvfold %s - %s\n\nSYNOPSIS\n       kvfold %s %s [OPTIONS]\n\nDESCRIPTION\n", c->name, c->summary, c->name,
         c->operands);
  fill(c->description, 7);
  printf("\nOPTIONS\n");
  for (const cli_option *o = c->options; o->name; o++) {
    printf("       --%s%s%s\n", o->name, o->value ? " " : "", o->value ? o->value : "");
    fill(o->help, 14);
  }
  printf("       --help\n              print this page\n");
  lines("KEYS OF --set", c->settings);
  lines("KEYS (with --json)", c->keys);
  lines("EXAMPLES", c->examples);
  lines("EXIT STATUS", "0  done\n1  the model, the files or the machine did not allow it; one sentence on stderr says why\n"
                       "2  an unknown option, sub-command, method, key or value");
}
