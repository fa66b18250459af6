/* Tokens to a syntax tree: recursive descent in the order of Jinja's own grammar, so that precedence is the same. */
#include "text/jinja_impl.h"

#include <string.h>

typedef struct parser {
  kf_jinja *j;
  const kf_j_token *t; /* the current token */
  int loops;           /* open for loops of this macro: break and continue need one */
} parser;

static kf_status expression(parser *p, bool condition, kf_j_node **out);
static kf_status unary(parser *p, bool filters, kf_j_node **out);
static kf_status body(parser *p, const char *const *ends, kf_j_node **out);

/* ------------------------------------------------------------------------------------------------ tokens */

static bool at_op(const parser *p, const char *op) {
  return p->t->kind == KF_T_OPERATOR && strcmp(p->t->op, op) == 0;
}

static bool token_is(const kf_j_token *t, const char *name) {
  return t->kind == KF_T_NAME && strcmp(t->value.string->data, name) == 0;
}

static bool at_name(const parser *p, const char *name) {
  return token_is(p->t, name);
}

static bool take_op(parser *p, const char *op) {
  bool yes = at_op(p, op);
  if (yes) p->t = p->t->next;
  return yes;
}

static bool take_name(parser *p, const char *name) {
  bool yes = at_name(p, name);
  if (yes) p->t = p->t->next;
  return yes;
}

static kf_status unexpected(parser *p, const char *expected) {
  p->j->line = p->t->line;
  switch (p->t->kind) {
  case KF_T_NAME: return kf_j_fail(p->j, "expected %s, found '%.60s'", expected, p->t->value.string->data);
  case KF_T_OPERATOR: return kf_j_fail(p->j, "expected %s, found '%s'", expected, p->t->op);
  case KF_T_STRING: return kf_j_fail(p->j, "expected %s, found a string", expected);
  case KF_T_NUMBER: return kf_j_fail(p->j, "expected %s, found a number", expected);
  case KF_T_END: return kf_j_fail(p->j, "expected %s, found the end of the template", expected);
  default: return kf_j_fail(p->j, "expected %s, found the end of the tag", expected);
  }
}

static kf_status need_op(parser *p, const char *op) {
  char what[8] = {'\'', op[0], '\''};
  return take_op(p, op) ? KF_OK : unexpected(p, what);
}

static kf_status need_name(parser *p, const char *what, const kf_j_string **out) {
  if (p->t->kind != KF_T_NAME) return unexpected(p, what);
  *out = p->t->value.string;
  p->t = p->t->next;
  return KF_OK;
}

static kf_status node(parser *p, kf_j_node_kind kind, kf_j_node **out) {
  KF_TRY(kf_j_alloc(p->j, 1, sizeof **out, out));
  (*out)->kind = kind;
  (*out)->line = p->t->line;
  return KF_OK;
}

/* A new node in front of what was parsed so far: *out becomes its operand a. */
static kf_status wrap(parser *p, kf_j_node_kind kind, kf_j_node **out) {
  kf_j_node *operand = *out;
  KF_TRY(node(p, kind, out));
  (*out)->a = operand;
  return KF_OK;
}

static kf_status enter(parser *p) {
  p->j->line = p->t->line;
  return kf_j_enter(p->j);
}

/* ------------------------------------------------------------------------------------------------ expressions */

static bool tuple_end(const parser *p, const char *end_name) {
  return p->t->kind == KF_T_PRINT_END || p->t->kind == KF_T_BLOCK_END || at_op(p, ")") || (end_name && at_name(p, end_name));
}

static kf_status primary(parser *p, kf_j_node **out);

/* One expression, or several parted by commas: a tuple. targets: only names (the left side of set and for). */
static kf_status tuple(parser *p, bool targets, bool condition, const char *end_name, bool parentheses, kf_j_node **out) {
  kf_j_node *all, **tail;
  KF_TRY(node(p, KF_N_TUPLE, &all));
  tail = &all->list;
  bool is_tuple = false;
  while (!tuple_end(p, end_name)) {
    KF_TRY(targets ? primary(p, tail) : expression(p, condition, tail));
    tail = &(*tail)->next;
    if (!take_op(p, ",")) break;
    is_tuple = true;
  }
  if (!is_tuple && !all->list && !parentheses) return unexpected(p, "an expression");
  *out = is_tuple || !all->list ? all : all->list;
  return KF_OK;
}

static kf_status literal_list(parser *p, kf_j_node **out) {
  KF_TRY(node(p, KF_N_LIST, out));
  kf_j_node **tail = &(*out)->list;
  p->t = p->t->next;
  while (!at_op(p, "]")) {
    KF_TRY(expression(p, true, tail));
    tail = &(*tail)->next;
    if (!take_op(p, ",")) break;
  }
  return need_op(p, "]");
}

static kf_status literal_dict(parser *p, kf_j_node **out) {
  KF_TRY(node(p, KF_N_DICT, out));
  kf_j_node **tail = &(*out)->list;
  p->t = p->t->next;
  while (!at_op(p, "}")) {
    KF_TRY(node(p, KF_N_PAIR, tail));
    KF_TRY(expression(p, true, &(*tail)->a));
    KF_TRY(need_op(p, ":"));
    KF_TRY(expression(p, true, &(*tail)->b));
    tail = &(*tail)->next;
    if (!take_op(p, ",")) break;
  }
  return need_op(p, "}");
}

static kf_status name_or_constant(parser *p, kf_j_node **out) {
  static const struct {
    const char *name;
    kf_j_kind kind;
    int64_t value;
  } constants[] = {
      {"true", KF_J_BOOL, 1},  {"True", KF_J_BOOL, 1}, {"false", KF_J_BOOL, 0},
      {"False", KF_J_BOOL, 0}, {"none", KF_J_NONE, 0}, {"None", KF_J_NONE, 0},
  };
  KF_TRY(node(p, KF_N_NAME, out));
  (*out)->name = p->t->value.string;
  for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) {
    if (!at_name(p, constants[i].name)) continue;
    (*out)->kind = KF_N_CONSTANT;
    (*out)->value = (kf_j_value){.kind = constants[i].kind, .integer = constants[i].value};
  }
  p->t = p->t->next;
  return KF_OK;
}

static kf_status literal_string(parser *p, kf_j_node **out) {
  KF_TRY(node(p, KF_N_CONSTANT, out));
  kf_j_builder b = {0};
  for (; p->t->kind == KF_T_STRING; p->t = p->t->next)
    KF_TRY(kf_j_add(p->j, &b, p->t->value.string->data, p->t->value.string->bytes));
  return kf_j_built(p->j, &b, &(*out)->value);
}

static kf_status primary(parser *p, kf_j_node **out) {
  if (p->t->kind == KF_T_NAME) return name_or_constant(p, out);
  if (p->t->kind == KF_T_STRING) return literal_string(p, out);
  if (p->t->kind == KF_T_NUMBER) {
    KF_TRY(node(p, KF_N_CONSTANT, out));
    (*out)->value = p->t->value;
    p->t = p->t->next;
    return KF_OK;
  }
  if (at_op(p, "[")) return literal_list(p, out);
  if (at_op(p, "{")) return literal_dict(p, out);
  if (!take_op(p, "(")) return unexpected(p, "an expression");
  KF_TRY(tuple(p, false, true, NULL, true, out));
  return need_op(p, ")");
}

static kf_status call_arguments(parser *p, kf_j_node **out) {
  bool named = false;
  KF_TRY(need_op(p, "("));
  while (!at_op(p, ")")) {
    if (at_op(p, "*") || at_op(p, "**")) return unexpected(p, "an argument (unpacking is not supported)");
    if (p->t->kind == KF_T_NAME && p->t->next->kind == KF_T_OPERATOR && strcmp(p->t->next->op, "=") == 0) {
      KF_TRY(node(p, KF_N_KEYWORD, out));
      (*out)->name = p->t->value.string;
      p->t = p->t->next->next;
      KF_TRY(expression(p, true, &(*out)->a));
      named = true;
    } else {
      if (named) return unexpected(p, "a named argument");
      KF_TRY(expression(p, true, out));
    }
    out = &(*out)->next;
    if (!take_op(p, ",")) break;
  }
  return need_op(p, ")");
}

static kf_status slice_bound(parser *p, kf_j_node **out) {
  if (!at_op(p, ":") && !at_op(p, "]")) return expression(p, true, out);
  KF_TRY(node(p, KF_N_CONSTANT, out));
  (*out)->value = kf_j_none();
  return KF_OK;
}

static kf_status subscript(parser *p, kf_j_node **out) {
  kf_j_node *first, *second, *third;
  KF_TRY(wrap(p, KF_N_ITEM, out));
  p->t = p->t->next;
  if (at_op(p, "]")) return unexpected(p, "a subscript");
  KF_TRY(slice_bound(p, &first));
  if (take_op(p, ":")) {
    KF_TRY(slice_bound(p, &second));
    take_op(p, ":");
    KF_TRY(slice_bound(p, &third));
    (*out)->kind = KF_N_SLICE;
    (*out)->list = first;
    first->next = second;
    second->next = third;
  } else {
    (*out)->b = first;
  }
  return need_op(p, "]");
}

static kf_status dot(parser *p, kf_j_node **out) {
  KF_TRY(wrap(p, KF_N_ATTRIBUTE, out));
  p->t = p->t->next;
  if (p->t->kind == KF_T_NUMBER && p->t->value.kind == KF_J_INT) {
    (*out)->kind = KF_N_ITEM;
    KF_TRY(node(p, KF_N_CONSTANT, &(*out)->b));
    (*out)->b->value = p->t->value;
    p->t = p->t->next;
    return KF_OK;
  }
  return need_name(p, "a name behind '.'", &(*out)->name);
}

static kf_status postfix(parser *p, kf_j_node **out) {
  for (;;) {
    if (at_op(p, ".")) {
      KF_TRY(dot(p, out));
    } else if (at_op(p, "[")) {
      KF_TRY(subscript(p, out));
    } else if (at_op(p, "(")) {
      KF_TRY(wrap(p, KF_N_CALL, out));
      KF_TRY(call_arguments(p, &(*out)->list));
    } else {
      return KF_OK;
    }
  }
}

static kf_status filter(parser *p, kf_j_node **out) {
  KF_TRY(wrap(p, KF_N_FILTER, out));
  KF_TRY(need_name(p, "the name of a filter", &(*out)->name));
  return at_op(p, "(") ? call_arguments(p, &(*out)->list) : KF_OK;
}

/* x is [not] name, name(...) or name argument */
static kf_status test(parser *p, kf_j_node **out) {
  bool negated = take_name(p, "not");
  KF_TRY(wrap(p, KF_N_TEST, out));
  kf_j_node *t = *out;
  KF_TRY(need_name(p, "the name of a test", &t->name));
  if (at_op(p, "(")) {
    KF_TRY(call_arguments(p, &t->list));
  } else if (p->t->kind == KF_T_STRING || p->t->kind == KF_T_NUMBER || at_op(p, "[") || at_op(p, "{") ||
             (p->t->kind == KF_T_NAME && !at_name(p, "else") && !at_name(p, "or") && !at_name(p, "and"))) {
    if (at_name(p, "is")) return unexpected(p, "no second 'is'");
    KF_TRY(primary(p, &t->list));
    KF_TRY(postfix(p, &t->list));
  }
  return negated ? wrap(p, KF_N_NOT, out) : KF_OK;
}

static kf_status unary_body(parser *p, bool filters, kf_j_node **out) {
  bool minus = at_op(p, "-");
  if (minus || at_op(p, "+")) {
    KF_TRY(node(p, minus ? KF_N_NEGATE : KF_N_PLUS, out));
    p->t = p->t->next;
    KF_TRY(unary(p, false, &(*out)->a));
  } else {
    KF_TRY(primary(p, out));
  }
  KF_TRY(postfix(p, out));
  while (filters) {
    if (take_op(p, "|")) {
      KF_TRY(filter(p, out));
    } else if (take_name(p, "is")) {
      KF_TRY(test(p, out));
    } else if (at_op(p, "(")) {
      KF_TRY(postfix(p, out));
    } else {
      break;
    }
  }
  return KF_OK;
}

static kf_status unary(parser *p, bool filters, kf_j_node **out) {
  KF_TRY(enter(p));
  kf_status s = unary_body(p, filters, out);
  p->j->depth--;
  return s;
}

/* The left-associative levels, tightest first: **, then * / // %, then ~, then + -. */
static kf_status binary(parser *p, int level, kf_j_node **out) {
  static const char *const operators[][5] = {{"**"}, {"*", "/", "//", "%"}, {"~"}, {"+", "-"}};
  if (level < 0) return unary(p, true, out);
  KF_TRY(binary(p, level - 1, out));
  for (;;) {
    const char *op = NULL;
    for (int i = 0; operators[level][i]; i++)
      if (at_op(p, operators[level][i])) op = operators[level][i];
    if (!op) return KF_OK;
    if (level == 2) { // a ~ b ~ c is one node
      kf_j_node *first = *out, **tail = &first->next;
      KF_TRY(node(p, KF_N_CONCAT, out));
      (*out)->list = first;
      while (take_op(p, "~")) {
        KF_TRY(binary(p, level - 1, tail));
        tail = &(*tail)->next;
      }
      return KF_OK;
    }
    KF_TRY(wrap(p, KF_N_BINARY, out));
    (*out)->op = KF_OP(op[0], op[1]);
    p->t = p->t->next;
    KF_TRY(binary(p, level - 1, &(*out)->b));
  }
}

static int comparison(parser *p) {
  static const char *const operators[] = {"==", "!=", "<", "<=", ">", ">="};
  for (size_t i = 0; i < sizeof operators / sizeof *operators; i++)
    if (take_op(p, operators[i])) return KF_OP(operators[i][0], operators[i][1]);
  if (take_name(p, "in")) return 'i';
  if (!at_name(p, "not") || !token_is(p->t->next, "in")) return 0;
  p->t = p->t->next->next;
  return 'n';
}

static kf_status compare(parser *p, kf_j_node **out) {
  KF_TRY(binary(p, 3, out));
  int op = comparison(p);
  if (!op) return KF_OK;
  KF_TRY(wrap(p, KF_N_COMPARE, out));
  for (kf_j_node **tail = &(*out)->list; op; op = comparison(p)) {
    KF_TRY(node(p, KF_N_OPERAND, tail));
    (*tail)->op = op;
    KF_TRY(binary(p, 3, &(*tail)->a));
    tail = &(*tail)->next;
  }
  return KF_OK;
}

static kf_status negation(parser *p, kf_j_node **out) {
  if (!at_name(p, "not")) return compare(p, out);
  KF_TRY(node(p, KF_N_NOT, out));
  p->t = p->t->next;
  KF_TRY(enter(p));
  kf_status s = negation(p, &(*out)->a);
  p->j->depth--;
  return s;
}

static kf_status conjunction(parser *p, kf_j_node **out) {
  KF_TRY(negation(p, out));
  while (take_name(p, "and")) {
    KF_TRY(wrap(p, KF_N_AND, out));
    KF_TRY(negation(p, &(*out)->b));
  }
  return KF_OK;
}

static kf_status disjunction(parser *p, kf_j_node **out) {
  KF_TRY(conjunction(p, out));
  while (take_name(p, "or")) {
    KF_TRY(wrap(p, KF_N_OR, out));
    KF_TRY(conjunction(p, &(*out)->b));
  }
  return KF_OK;
}

static kf_status expression(parser *p, bool condition, kf_j_node **out) {
  KF_TRY(enter(p));
  KF_TRY(disjunction(p, out));
  while (condition && take_name(p, "if")) {
    KF_TRY(wrap(p, KF_N_CONDITION, out));
    KF_TRY(disjunction(p, &(*out)->b));
    if (take_name(p, "else")) KF_TRY(expression(p, true, &(*out)->other));
  }
  p->j->depth--;
  return KF_OK;
}

/* ------------------------------------------------------------------------------------------------ statements */

static kf_status target(parser *p, const char *end_name, bool attributes, kf_j_node **out) {
  KF_TRY(tuple(p, true, false, end_name, false, out));
  if (attributes && (*out)->kind == KF_N_NAME && at_op(p, ".")) return dot(p, out);
  for (const kf_j_node *n = (*out)->kind == KF_N_TUPLE ? (*out)->list : *out; n; n = n->next)
    if (n->kind != KF_N_NAME) return unexpected(p, "a name to assign to");
  return KF_OK;
}

/* Everything up to one of the end names, which stays the current token. */
static kf_status block(parser *p, const char *what, int line, const char *const *ends, kf_j_node **out) {
  take_op(p, ":");
  if (p->t->kind != KF_T_BLOCK_END) return unexpected(p, "the end of the tag");
  p->t = p->t->next;
  KF_TRY(body(p, ends, out));
  if (p->t->kind != KF_T_END) return KF_OK;
  p->j->line = line;
  return kf_j_fail(p->j, "the block {%% %s %%} is not closed by {%% %s %%}", what, ends[0]);
}

/* The same, the end name taken. */
static kf_status whole_block(parser *p, const char *what, int line, const char *end, kf_j_node **out) {
  KF_TRY(block(p, what, line, (const char *const[]){end, NULL}, out));
  p->t = p->t->next;
  return KF_OK;
}

static kf_status parse_if(parser *p, kf_j_node *n) {
  static const char *const ends[] = {"endif", "elif", "else", NULL};
  int line = n->line;
  for (;;) {
    KF_TRY(tuple(p, false, false, NULL, false, &n->a));
    KF_TRY(block(p, "if", line, ends, &n->body));
    if (take_name(p, "endif")) return KF_OK;
    KF_TRY(node(p, KF_N_IF, &n->other));
    n = n->other;
    if (take_name(p, "else")) return whole_block(p, "if", line, "endif", &n->body);
    p->t = p->t->next;
  }
}

static kf_status parse_for(parser *p, kf_j_node *n) {
  static const char *const ends[] = {"endfor", "else", NULL};
  KF_TRY(target(p, "in", false, &n->target));
  if (!take_name(p, "in")) return unexpected(p, "'in'");
  KF_TRY(tuple(p, false, false, "recursive", false, &n->a));
  if (take_name(p, "if")) KF_TRY(expression(p, true, &n->b));
  if (at_name(p, "recursive")) return unexpected(p, "the end of the tag (recursive loops are not supported)");
  p->loops++;
  KF_TRY(block(p, "for", n->line, ends, &n->body));
  p->loops--;
  if (take_name(p, "endfor")) return KF_OK;
  p->t = p->t->next;
  return whole_block(p, "for", n->line, "endfor", &n->other);
}

/* Filters applied to the text of a block. */
static kf_status block_filters(parser *p, bool first, kf_j_node **out) {
  if (!first && !at_op(p, "|")) return KF_OK;
  KF_TRY(node(p, KF_N_CAPTURED, out));
  if (first) KF_TRY(filter(p, out));
  while (take_op(p, "|")) KF_TRY(filter(p, out));
  return KF_OK;
}

static kf_status parse_set(parser *p, kf_j_node *n) {
  KF_TRY(target(p, NULL, true, &n->target));
  if (take_op(p, "=")) return tuple(p, false, true, NULL, false, &n->a);
  n->kind = KF_N_SET_BLOCK;
  KF_TRY(block_filters(p, false, &n->a));
  return whole_block(p, "set", n->line, "endset", &n->body);
}

static kf_status parse_with(parser *p, kf_j_node *n) {
  for (kf_j_node **tail = &n->list; p->t->kind != KF_T_BLOCK_END; tail = &(*tail)->next) {
    if (n->list) KF_TRY(need_op(p, ","));
    KF_TRY(node(p, KF_N_SET, tail));
    KF_TRY(node(p, KF_N_NAME, &(*tail)->target));
    KF_TRY(need_name(p, "a name", &(*tail)->target->name));
    KF_TRY(need_op(p, "="));
    KF_TRY(expression(p, true, &(*tail)->a));
  }
  return whole_block(p, "with", n->line, "endwith", &n->body);
}

static kf_status parameters(parser *p, kf_j_node **tail) {
  bool defaults = false;
  KF_TRY(need_op(p, "("));
  while (!at_op(p, ")")) {
    KF_TRY(node(p, KF_N_PARAMETER, tail));
    KF_TRY(need_name(p, "the name of a parameter", &(*tail)->name));
    if (take_op(p, "=")) {
      KF_TRY(expression(p, true, &(*tail)->a));
      defaults = true;
    } else if (defaults) {
      return unexpected(p, "a default, as the parameter before has one");
    }
    tail = &(*tail)->next;
    if (!take_op(p, ",")) break;
  }
  return need_op(p, ")");
}

/* The body of a macro: loops around it are not its own. */
static kf_status macro_body(parser *p, const char *what, int line, const char *end, kf_j_node **out) {
  int loops = p->loops;
  p->loops = 0;
  KF_TRY(whole_block(p, what, line, end, out));
  p->loops = loops;
  return KF_OK;
}

static kf_status parse_macro(parser *p, kf_j_node *n) {
  KF_TRY(need_name(p, "the name of a macro", &n->name));
  KF_TRY(parameters(p, &n->list));
  return macro_body(p, "macro", n->line, "endmacro", &n->body);
}

static kf_status parse_call(parser *p, kf_j_node *n) {
  static const kf_j_string caller = {.data = "caller", .bytes = 6, .chars = 6};
  KF_TRY(node(p, KF_N_MACRO, &n->other));
  n->other->name = &caller;
  if (at_op(p, "(")) KF_TRY(parameters(p, &n->other->list));
  KF_TRY(expression(p, true, &n->a));
  if (n->a->kind != KF_N_CALL) return unexpected(p, "a call");
  return macro_body(p, "call", n->line, "endcall", &n->other->body);
}

static kf_status parse_filter(parser *p, kf_j_node *n) {
  KF_TRY(block_filters(p, true, &n->a));
  return whole_block(p, "filter", n->line, "endfilter", &n->body);
}

static kf_status parse_generation(parser *p, kf_j_node *n) {
  return macro_body(p, "generation", n->line, "endgeneration", &n->body);
}

static kf_status parse_jump(parser *p, kf_j_node *n) {
  (void)n;
  return p->loops ? KF_OK : unexpected(p, "break and continue inside a loop");
}

static kf_status statement(parser *p, kf_j_node **out) {
  static const struct {
    const char *name;
    kf_j_node_kind kind;
    kf_status (*parse)(parser *, kf_j_node *);
  } statements[] = {
      {"if", KF_N_IF, parse_if},
      {"for", KF_N_FOR, parse_for},
      {"set", KF_N_SET, parse_set},
      {"with", KF_N_WITH, parse_with},
      {"macro", KF_N_MACRO, parse_macro},
      {"call", KF_N_CALL_BLOCK, parse_call},
      {"break", KF_N_BREAK, parse_jump},
      {"filter", KF_N_FILTER_BLOCK, parse_filter},
      {"continue", KF_N_CONTINUE, parse_jump},
      {"generation", KF_N_SCOPE, parse_generation},
  };
  for (size_t i = 0; i < sizeof statements / sizeof *statements; i++) {
    if (!at_name(p, statements[i].name)) continue;
    KF_TRY(node(p, statements[i].kind, out));
    p->t = p->t->next;
    KF_TRY(statements[i].parse(p, *out));
    if (p->t->kind != KF_T_BLOCK_END) return unexpected(p, "the end of the tag");
    p->t = p->t->next;
    return KF_OK;
  }
  return unexpected(p, "a tag that is supported here");
}

static bool at_end(const parser *p, const char *const *ends) {
  for (; ends && *ends; ends++)
    if (token_is(p->t->next, *ends)) return true;
  return false;
}

static kf_status body(parser *p, const char *const *ends, kf_j_node **out) {
  KF_TRY(enter(p));
  for (; p->t->kind != KF_T_END; out = &(*out)->next) {
    if (p->t->kind == KF_T_TEXT) {
      KF_TRY(node(p, KF_N_TEXT, out));
      (*out)->value = p->t->value;
      p->t = p->t->next;
    } else if (p->t->kind == KF_T_PRINT) {
      p->t = p->t->next;
      KF_TRY(node(p, KF_N_PRINT, out));
      KF_TRY(tuple(p, false, true, NULL, false, &(*out)->a));
      if (p->t->kind != KF_T_PRINT_END) return unexpected(p, "}}");
      p->t = p->t->next;
    } else {
      bool end = at_end(p, ends);
      p->t = p->t->next;
      if (end) break;
      KF_TRY(statement(p, out));
    }
  }
  p->j->depth--;
  return KF_OK;
}

kf_status kf_j_parse(kf_jinja *j, const kf_j_token *tokens, kf_j_node **out) {
  parser p = {.j = j, .t = tokens};
  *out = NULL;
  return body(&p, NULL, out);
}
