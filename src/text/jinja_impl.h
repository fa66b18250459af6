/* Inside of the template interpreter: values, tokens, the syntax tree and what its files share.
 *
 *   source -> jinja_lex.c -> tokens -> jinja_parse.c -> tree -> jinja_eval.c -> text
 *
 * Everything lives in one arena and dies with the rendering. Every loop spends steps and every allocation is counted, so
 * a hostile template ends in an error, never in a hang or a crash. Semantics are those of Jinja 3.1 in the environment
 * of transformers' apply_chat_template; strings count in code points. */
#ifndef KF_TEXT_JINJA_IMPL_H
#define KF_TEXT_JINJA_IMPL_H

#include "text/jinja.h"

enum {
  KF_JINJA_DEPTH = 500, /* nesting of syntax, of calls and of values */
  KF_JINJA_STEPS = 10 * 1000 * 1000,
  KF_JINJA_MEMORY = 256 << 20, /* bytes */
  KF_JINJA_OUTPUT = 64 << 20,  /* bytes */
  KF_JINJA_RANGE = 100000,     /* the sandbox's own limit */
};

/* ------------------------------------------------------------------------------------------------ values */

typedef enum kf_j_kind {
  KF_J_MISSING,   /* an argument that was not given */
  KF_J_UNDEFINED, /* .string: why */
  KF_J_NONE,
  KF_J_BOOL, /* .integer: 0 or 1 */
  KF_J_INT,
  KF_J_FLOAT,
  KF_J_STRING,
  KF_J_LIST,
  KF_J_TUPLE,
  KF_J_GENERATOR, /* a list that can be iterated once */
  KF_J_VIEW,      /* what keys(), values() and items() give */
  KF_J_RANGE,
  KF_J_DICT,
  KF_J_NAMESPACE,
  KF_J_LOOP,
  KF_J_MACRO,
  KF_J_FUNCTION,
} kf_j_kind;

typedef struct kf_jinja kf_jinja;
typedef struct kf_j_node kf_j_node;
typedef struct kf_j_value kf_j_value;
typedef struct kf_j_string {
  const char *data;
  size_t bytes, chars;
} kf_j_string; /* NUL-terminated UTF-8 */
typedef struct kf_j_list {
  kf_j_value *items;
  size_t count, capacity;
  const char *view;
} kf_j_list;
typedef struct kf_j_dict {
  struct kf_j_pair *pairs;
  size_t count, capacity;
} kf_j_dict; /* in order of insertion */
typedef struct kf_j_range {
  int64_t start, stop, step;
  size_t count;
} kf_j_range;
typedef struct kf_j_scope kf_j_scope;

struct kf_j_value {
  kf_j_kind kind;
  union {
    int64_t integer;
    double real;
    const kf_j_string *string;
    kf_j_list *list;
    kf_j_dict *dict;
    const kf_j_range *range;
    struct kf_j_loop *loop;
    const struct kf_j_macro *macro;
    const struct kf_j_bound *function;
  };
};

typedef struct kf_j_pair {
  kf_j_value key, value;
} kf_j_pair;
typedef struct kf_j_loop {
  kf_j_list items;
  size_t index;
  kf_j_value changed;
} kf_j_loop;
typedef struct kf_j_macro {
  const kf_j_node *node;
  kf_j_scope *scope;
} kf_j_macro;

typedef struct kf_j_args {
  kf_j_value *items;
  size_t count;
  kf_j_dict named;
} kf_j_args;

/* One signature for filters, tests, methods and global functions. Where params (names, parted by spaces) is not NULL,
 * a->items holds exactly those, KF_J_MISSING where not given; else the arguments as they were written. */
typedef kf_status kf_j_call(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out);
typedef struct kf_j_function {
  const char *name, *params;
  kf_j_call *call;
} kf_j_function;
typedef struct kf_j_bound {
  const kf_j_function *function;
  kf_j_value self;
} kf_j_bound;
enum { KF_J_PARAMS = 8 };

/* ------------------------------------------------------------------------------------------------ one rendering */

typedef struct kf_j_builder {
  char *data;
  size_t bytes, capacity;
} kf_j_builder; /* text that grows in the arena */

struct kf_jinja {
  kf_arena arena;
  size_t memory, output; /* bytes so far */
  int64_t steps;
  int depth, line;
  kf_error *e;
  kf_j_builder *out;
  kf_j_scope *scope;
  enum { KF_J_ON, KF_J_BREAK, KF_J_CONTINUE } flow;
};

/* jinja_value.c */
kf_status kf_j_fail(kf_jinja *j, const char *format, ...) __attribute__((format(printf, 2, 3)));
kf_status kf_j_spend(kf_jinja *j, size_t bytes);                         /* one step, and one more every 16 bytes */
kf_status kf_j_alloc(kf_jinja *j, size_t count, size_t size, void *out); /* out: pointer to a pointer */
kf_status kf_j_enter(kf_jinja *j);                                       /* one level deeper; leave with j->depth-- */
kf_status kf_j_add(kf_jinja *j, kf_j_builder *b, const char *data, size_t bytes);
kf_status kf_j_add_char(kf_jinja *j, kf_j_builder *b, int32_t code);
kf_status kf_j_add_format(kf_jinja *j, kf_j_builder *b, const char *format, ...) __attribute__((format(printf, 3, 4)));

kf_status kf_j_text(kf_jinja *j, const char *data, size_t bytes, kf_j_value *out); /* keeps the pointer */
kf_status kf_j_built(kf_jinja *j, const kf_j_builder *b, kf_j_value *out);
kf_status kf_j_undefined(kf_jinja *j, kf_j_value *out, const char *format, ...) __attribute__((format(printf, 3, 4)));
kf_status kf_j_push(kf_jinja *j, kf_j_list *list, kf_j_value v);
kf_status kf_j_new_list(kf_jinja *j, kf_j_kind kind, kf_j_value *out);
kf_status kf_j_new_dict(kf_jinja *j, kf_j_kind kind, kf_j_value *out);
kf_status kf_j_put(kf_jinja *j, kf_j_dict *d, kf_j_value key, kf_j_value value);
kf_status kf_j_find(kf_jinja *j, const kf_j_dict *d, kf_j_value key, kf_j_value *out); /* KF_J_MISSING: not there */
kf_status kf_j_from_json(kf_jinja *j, const json_t *json, kf_j_value *out);

static inline kf_j_value kf_j_none(void) {
  return (kf_j_value){.kind = KF_J_NONE};
}
static inline kf_j_value kf_j_bool(bool b) {
  return (kf_j_value){.kind = KF_J_BOOL, .integer = b};
}
static inline kf_j_value kf_j_int(int64_t i) {
  return (kf_j_value){.kind = KF_J_INT, .integer = i};
}
static inline kf_j_value kf_j_real(double f) {
  return (kf_j_value){.kind = KF_J_FLOAT, .real = f};
}
static inline bool kf_j_whole(kf_j_value v) {
  return v.kind == KF_J_INT || v.kind == KF_J_BOOL;
}
static inline bool kf_j_number(kf_j_value v) {
  return kf_j_whole(v) || v.kind == KF_J_FLOAT;
}
static inline double kf_j_as_real(kf_j_value v) {
  return v.kind == KF_J_FLOAT ? v.real : (double)v.integer;
}

const char *kf_j_type(kf_j_value v);               /* Python's name of the type */
kf_status kf_j_defined(kf_jinja *j, kf_j_value v); /* Errors: v is undefined, and why */
bool kf_j_truth(kf_j_value v);
kf_status kf_j_equal(kf_jinja *j, kf_j_value a, kf_j_value b, bool *out);
kf_status kf_j_order(kf_jinja *j, kf_j_value a, kf_j_value b, int *out); /* Errors: types without an order */
kf_status kf_j_items(kf_jinja *j, kf_j_value v, kf_j_list *out);         /* what iterating gives; empties a generator */
kf_status kf_j_length(kf_jinja *j, kf_j_value v, int64_t *out);
kf_status kf_j_contains(kf_jinja *j, kf_j_value whole, kf_j_value part, bool *out);

/* jinja_print.c */
kf_status kf_j_print(kf_jinja *j, kf_j_builder *b, kf_j_value v); /* str() */
kf_status kf_j_repr(kf_jinja *j, kf_j_builder *b, kf_j_value v);
kf_status kf_j_string_of(kf_jinja *j, kf_j_value v, kf_j_value *out); /* str() as a value */
kf_status kf_j_json(kf_jinja *j, kf_j_value v, const kf_j_args *a,
                    kf_j_value *out); /* ensure_ascii indent separators sort_keys */
kf_status kf_j_format(kf_jinja *j, const kf_j_string *format, kf_j_value arguments, kf_j_value *out); /* the % operator */

/* jinja_string.c */
extern const kf_j_function kf_j_string_methods[];
bool kf_j_space(int32_t code);
int32_t kf_j_next(const char **at, const char *end); /* decodes one code point, U+FFFD for a broken one */
int32_t kf_j_previous(const char *start, const char **at);
size_t kf_j_chars(const char *data, size_t bytes);
size_t kf_j_offset(const kf_j_string *s, size_t chars); /* in bytes */
kf_j_call kf_j_strip, kf_j_upper, kf_j_lower, kf_j_capitalize, kf_j_title_words, kf_j_replace;

/* jinja_object.c */
kf_status kf_j_attribute(kf_jinja *j, kf_j_value object, const kf_j_string *name, kf_j_value *out); /* object.name */
kf_status kf_j_item(kf_jinja *j, kf_j_value object, kf_j_value key, kf_j_value *out);               /* object[key] */
kf_status kf_j_slice(kf_jinja *j, kf_j_value object, const kf_j_value bounds[3], kf_j_value *out);
kf_status kf_j_binary(kf_jinja *j, int op, kf_j_value a, kf_j_value b, kf_j_value *out);
kf_status kf_j_negate(kf_jinja *j, kf_j_value v, kf_j_value *out);

/* jinja_filter.c, jinja_test.c */
const kf_j_function *kf_j_lookup(const kf_j_function *table, const char *name); /* NULL: none; a table ends with a NULL name */
kf_status kf_j_apply(kf_jinja *j, const kf_j_function *f, const char *what, kf_j_value self, const kf_j_args *a, kf_j_value *out);
kf_status kf_j_filter(kf_jinja *j, const char *name, kf_j_value self, const kf_j_args *a, kf_j_value *out);
kf_status kf_j_test(kf_jinja *j, const char *name, kf_j_value self, const kf_j_args *a, bool *out);
extern const kf_j_function kf_j_tests[], kf_j_filters[];

/* ------------------------------------------------------------------------------------------------ tokens */

typedef enum kf_j_token_kind {
  KF_T_TEXT,
  KF_T_PRINT,
  KF_T_PRINT_END,
  KF_T_BLOCK,
  KF_T_BLOCK_END,
  KF_T_NAME,
  KF_T_STRING,
  KF_T_NUMBER,
  KF_T_OPERATOR,
  KF_T_END,
} kf_j_token_kind;

typedef struct kf_j_token {
  kf_j_token_kind kind;
  int line;
  char op[3];       /* an operator's spelling */
  kf_j_value value; /* text, name, string, number */
  struct kf_j_token *next;
} kf_j_token;

kf_status kf_j_lex(kf_jinja *j, const char *source, kf_j_token **out);

/* ------------------------------------------------------------------------------------------------ syntax tree */

typedef enum kf_j_node_kind {
  /* statements */
  KF_N_TEXT,         /* value */
  KF_N_PRINT,        /* a */
  KF_N_IF,           /* a: condition (NULL: else), body, other: the next branch */
  KF_N_FOR,          /* target, a: what is iterated, b: filter or NULL, body, other: else or NULL */
  KF_N_SET,          /* target, a */
  KF_N_SET_BLOCK,    /* target, a: filters around KF_N_CAPTURED or NULL, body */
  KF_N_WITH,         /* list: KF_N_SET each, body */
  KF_N_MACRO,        /* name, list: KF_N_PARAMETER each (name, a: default or NULL), body */
  KF_N_CALL_BLOCK,   /* a: the call, other: KF_N_MACRO named caller */
  KF_N_FILTER_BLOCK, /* a: filters around KF_N_CAPTURED, body */
  KF_N_SCOPE,        /* body */
  KF_N_BREAK,
  KF_N_CONTINUE,
  /* expressions */
  KF_N_CONSTANT, /* value */
  KF_N_NAME,     /* name */
  KF_N_LIST,     /* list */
  KF_N_TUPLE,    /* list */
  KF_N_DICT,     /* list: KF_N_PAIR each (a: b) */
  KF_N_PAIR,
  KF_N_ATTRIBUTE, /* a . name */
  KF_N_ITEM,      /* a [b] */
  KF_N_SLICE,     /* a [list], KF_N_CONSTANT None where a bound is left out */
  KF_N_CALL,      /* a (list) */
  KF_N_FILTER,    /* a | name (list) */
  KF_N_TEST,      /* a is name (list) */
  KF_N_KEYWORD,   /* name = a, in an argument list */
  KF_N_PARAMETER,
  KF_N_CAPTURED,  /* the text of the block around */
  KF_N_CONDITION, /* a if b else other (NULL: undefined) */
  KF_N_OR,
  KF_N_AND, /* a, b */
  KF_N_NOT,
  KF_N_NEGATE,
  KF_N_PLUS,    /* a */
  KF_N_COMPARE, /* a, list: KF_N_OPERAND each (op, a) */
  KF_N_OPERAND,
  KF_N_CONCAT, /* list */
  KF_N_BINARY, /* a op b */
} kf_j_node_kind;

/* op: the first two characters of the operator, 'n' for `not in`, 'i' for `in` */
#define KF_OP(first, second) ((first) | (second) << 8)

struct kf_j_node {
  kf_j_node_kind kind;
  int line, op;
  kf_j_value value;
  const kf_j_string *name;
  kf_j_node *a, *b, *list, *target, *body, *other;
  kf_j_node *next; /* in the list or body it is part of */
};

kf_status kf_j_parse(kf_jinja *j, const kf_j_token *tokens, kf_j_node **out);

#endif
