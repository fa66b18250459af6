/* Walks the syntax tree: statements write text, expressions give values. */
#include "text/jinja_impl.h"

#include <string.h>
#include <time.h>

struct kf_j_scope {
  kf_j_scope *parent;
  kf_j_dict variables;
};

static kf_status evaluate(kf_jinja *j, const kf_j_node *n, kf_j_value *out);
static kf_status execute(kf_jinja *j, const kf_j_node *n);

/* ------------------------------------------------------------------------------------------------ names */

static kf_j_value named(const kf_j_string *s) {
  return (kf_j_value){.kind = KF_J_STRING, .string = s};
}

static kf_j_value *variable(const kf_j_scope *scope, const kf_j_string *name) {
  for (; scope; scope = scope->parent)
    for (size_t i = 0; i < scope->variables.count; i++) {
      const kf_j_string *key = scope->variables.pairs[i].key.string;
      if (key->bytes == name->bytes && memcmp(key->data, name->data, name->bytes) == 0) return &scope->variables.pairs[i].value;
    }
  return NULL;
}

static kf_status declare(kf_jinja *j, const kf_j_string *name, kf_j_value v) {
  return kf_j_put(j, &j->scope->variables, named(name), v);
}

static kf_status open_scope(kf_jinja *j, kf_j_scope *parent) {
  kf_j_scope *s;
  KF_TRY(kf_j_alloc(j, 1, sizeof *s, &s));
  s->parent = parent;
  j->scope = s;
  return KF_OK;
}

static kf_status assign_attribute(kf_jinja *j, const kf_j_node *target, kf_j_value v) {
  kf_j_value object;
  KF_TRY(evaluate(j, target->a, &object));
  if (object.kind != KF_J_NAMESPACE) return kf_j_fail(j, "cannot assign attribute on non-namespace object");
  return kf_j_put(j, object.dict, named(target->name), v);
}

static kf_status assign(kf_jinja *j, const kf_j_node *target, kf_j_value v) {
  if (target->kind == KF_N_NAME) return declare(j, target->name, v);
  if (target->kind == KF_N_ATTRIBUTE) return assign_attribute(j, target, v);
  kf_j_list items;
  KF_TRY(kf_j_items(j, v, &items));
  const kf_j_node *name = target->list;
  for (size_t i = 0; i < items.count && name; i++, name = name->next) {
    KF_TRY(declare(j, name->name, items.items[i]));
    if (!name->next && i + 1 == items.count) return KF_OK;
  }
  return !target->list && !items.count ? KF_OK : kf_j_fail(j, "%zu values do not fit the names to unpack to", items.count);
}

/* ------------------------------------------------------------------------------------------------ global functions */

static kf_status global_range(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)self;
  for (size_t i = 0; i < 3; i++)
    if (a->items[i].kind != KF_J_MISSING && !kf_j_whole(a->items[i])) return kf_j_fail(j, "range needs integers");
  if (a->items[0].kind == KF_J_MISSING) return kf_j_fail(j, "range needs an integer");
  bool one = a->items[1].kind == KF_J_MISSING;
  int64_t start = one ? 0 : a->items[0].integer, stop = a->items[!one].integer;
  int64_t step = a->items[2].kind == KF_J_MISSING ? 1 : a->items[2].integer, distance;
  if (!step) return kf_j_fail(j, "range: the step is zero");
  kf_j_range *r;
  KF_TRY(kf_j_alloc(j, 1, sizeof *r, &r));
  *r = (kf_j_range){.start = start, .stop = stop, .step = step};
  *out = (kf_j_value){.kind = KF_J_RANGE, .range = r};
  if (step > 0 ? start >= stop : start <= stop) return KF_OK;
  if (__builtin_sub_overflow(stop, start, &distance) || step == INT64_MIN) return kf_j_fail(j, "range too big");
  int64_t count = (distance - (step > 0 ? 1 : -1)) / step + 1;
  if (count > KF_JINJA_RANGE) return kf_j_fail(j, "range too big: the sandbox allows %d items", KF_JINJA_RANGE);
  r->count = (size_t)count;
  return KF_OK;
}

static kf_status merge(kf_jinja *j, const kf_j_args *a, kf_j_value *out) {
  for (size_t k = 0; k < a->count; k++) {
    if (a->items[k].kind != KF_J_DICT)
      return kf_j_fail(j, "a dictionary can be made from a mapping, not from %s", kf_j_type(a->items[k]));
    const kf_j_dict *d = a->items[k].dict;
    for (size_t i = 0; i < d->count; i++) KF_TRY(kf_j_put(j, out->dict, d->pairs[i].key, d->pairs[i].value));
  }
  for (size_t i = 0; i < a->named.count; i++) KF_TRY(kf_j_put(j, out->dict, a->named.pairs[i].key, a->named.pairs[i].value));
  return KF_OK;
}

static kf_status global_namespace(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)self;
  KF_TRY(kf_j_new_dict(j, KF_J_NAMESPACE, out));
  return merge(j, a, out);
}

static kf_status global_dict(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)self;
  KF_TRY(kf_j_new_dict(j, KF_J_DICT, out));
  return merge(j, a, out);
}

static kf_status global_raise(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)self;
  kf_j_value text;
  KF_TRY(kf_j_string_of(j, a->items[0].kind == KF_J_MISSING ? kf_j_none() : a->items[0], &text));
  *out = kf_j_none();
  return kf_j_fail(j, "%s", text.string->data);
}

static kf_status global_strftime(kf_jinja *j, kf_j_value self, const kf_j_args *a, kf_j_value *out) {
  (void)self;
  char text[256], *copy;
  struct tm local;
  time_t now = time(NULL);
  if (a->items[0].kind != KF_J_STRING || a->items[0].string->bytes > 64) return kf_j_fail(j, "strftime_now needs a short format");
  if (!localtime_r(&now, &local)) return kf_j_fail(j, "the system has no local time");
  size_t n = strftime(text, sizeof text, a->items[0].string->data, &local);
  KF_TRY(kf_j_alloc(j, n + 1, 1, &copy));
  memcpy(copy, text, n);
  return kf_j_text(j, copy, n, out);
}

static kf_status global(kf_jinja *j, const kf_j_string *name, kf_j_value *out) {
  static const kf_j_function functions[] = {
      {"range", "start stop step", global_range},   {"namespace", NULL, global_namespace},       {"dict", NULL, global_dict},
      {"raise_exception", "message", global_raise}, {"strftime_now", "format", global_strftime}, {NULL, NULL, NULL},
  };
  const kf_j_function *f = kf_j_lookup(functions, name->data);
  if (!f) return kf_j_undefined(j, out, "'%s' is undefined", name->data);
  kf_j_bound *b;
  KF_TRY(kf_j_alloc(j, 1, sizeof *b, &b));
  b->function = f;
  *out = (kf_j_value){.kind = KF_J_FUNCTION, .function = b};
  return KF_OK;
}

/* ------------------------------------------------------------------------------------------------ calls */

/* Runs a body and gives what it wrote. */
static kf_status capture(kf_jinja *j, const kf_j_node *body, kf_j_value *out) {
  kf_j_builder b = {0}, *outer = j->out;
  j->out = &b;
  kf_status s = execute(j, body);
  j->out = outer;
  return s == KF_OK ? kf_j_built(j, &b, out) : s;
}

static kf_status bind_parameters(kf_jinja *j, const kf_j_node *macro, const kf_j_args *a) {
  static const kf_j_string caller = {.data = "caller", .bytes = 6, .chars = 6};
  size_t at = 0, used = 0;
  for (const kf_j_node *p = macro->list; p; p = p->next, at++) {
    kf_j_value v = {.kind = KF_J_MISSING};
    KF_TRY(kf_j_find(j, &a->named, named(p->name), &v));
    used += v.kind != KF_J_MISSING;
    if (at < a->count && v.kind != KF_J_MISSING) return kf_j_fail(j, "the argument '%s' is given twice", p->name->data);
    if (at < a->count) v = a->items[at];
    if (v.kind == KF_J_MISSING && p->a) KF_TRY(evaluate(j, p->a, &v));
    if (v.kind == KF_J_MISSING) KF_TRY(kf_j_undefined(j, &v, "parameter '%s' was not provided", p->name->data));
    KF_TRY(declare(j, p->name, v));
  }
  if (a->count > at) return kf_j_fail(j, "macro '%s' takes at most %zu arguments, not %zu", macro->name->data, at, a->count);
  kf_j_value block;
  KF_TRY(kf_j_find(j, &a->named, named(&caller), &block));
  if (block.kind == KF_J_MACRO && !variable(&(kf_j_scope){.variables = j->scope->variables}, &caller)) {
    KF_TRY(declare(j, &caller, block));
    used++;
  }
  return used < a->named.count ? kf_j_fail(j, "macro '%s' was given an argument it does not have", macro->name->data) : KF_OK;
}

static kf_status call_macro(kf_jinja *j, const kf_j_macro *m, const kf_j_args *a, kf_j_value *out) {
  kf_j_scope *outer = j->scope;
  KF_TRY(open_scope(j, m->scope));
  KF_TRY(bind_parameters(j, m->node, a));
  KF_TRY(capture(j, m->node->body, out));
  j->scope = outer;
  return KF_OK;
}

static kf_status arguments(kf_jinja *j, const kf_j_node *list, kf_j_args *out) {
  kf_j_list positional = {0};
  *out = (kf_j_args){0};
  for (const kf_j_node *n = list; n; n = n->next) {
    kf_j_value v;
    KF_TRY(evaluate(j, n->kind == KF_N_KEYWORD ? n->a : n, &v));
    KF_TRY(n->kind == KF_N_KEYWORD ? kf_j_put(j, &out->named, named(n->name), v) : kf_j_push(j, &positional, v));
  }
  out->items = positional.items;
  out->count = positional.count;
  return KF_OK;
}

/* caller: the block of {% call %}, or NULL. */
static kf_status call(kf_jinja *j, const kf_j_node *n, const kf_j_macro *caller, kf_j_value *out) {
  kf_j_value callee;
  kf_j_args a;
  KF_TRY(evaluate(j, n->a, &callee));
  KF_TRY(arguments(j, n->list, &a));
  if (caller) {
    kf_j_value block = {.kind = KF_J_MACRO, .macro = caller};
    KF_TRY(kf_j_put(j, &a.named, named(caller->node->name), block));
  }
  j->line = n->line;
  KF_TRY(kf_j_defined(j, callee));
  if (callee.kind == KF_J_MACRO) return call_macro(j, callee.macro, &a, out);
  if (callee.kind == KF_J_FUNCTION) return kf_j_apply(j, callee.function->function, "function", callee.function->self, &a, out);
  return kf_j_fail(j, "'%s' object is not callable", kf_j_type(callee));
}

/* ------------------------------------------------------------------------------------------------ expressions */

static kf_status evaluate_name(kf_jinja *j, const kf_j_string *name, kf_j_value *out) {
  const kf_j_value *v = variable(j->scope, name);
  return v ? (*out = *v, KF_OK) : global(j, name, out);
}

static kf_status evaluate_list(kf_jinja *j, const kf_j_node *n, kf_j_value *out) {
  KF_TRY(kf_j_new_list(j, n->kind == KF_N_LIST ? KF_J_LIST : KF_J_TUPLE, out));
  for (const kf_j_node *item = n->list; item; item = item->next) {
    kf_j_value v;
    KF_TRY(evaluate(j, item, &v));
    KF_TRY(kf_j_push(j, out->list, v));
  }
  return KF_OK;
}

static kf_status evaluate_dict(kf_jinja *j, const kf_j_node *n, kf_j_value *out) {
  KF_TRY(kf_j_new_dict(j, KF_J_DICT, out));
  for (const kf_j_node *pair = n->list; pair; pair = pair->next) {
    kf_j_value key, value;
    KF_TRY(evaluate(j, pair->a, &key));
    KF_TRY(evaluate(j, pair->b, &value));
    KF_TRY(kf_j_put(j, out->dict, key, value));
  }
  return KF_OK;
}

static kf_status evaluate_attribute(kf_jinja *j, const kf_j_node *n, kf_j_value *out) {
  kf_j_value object;
  KF_TRY(evaluate(j, n->a, &object));
  return kf_j_attribute(j, object, n->name, out);
}

static kf_status evaluate_item(kf_jinja *j, const kf_j_node *n, kf_j_value *out) {
  kf_j_value object, key;
  KF_TRY(evaluate(j, n->a, &object));
  KF_TRY(evaluate(j, n->b, &key));
  return kf_j_item(j, object, key, out);
}

static kf_status evaluate_slice(kf_jinja *j, const kf_j_node *n, kf_j_value *out) {
  kf_j_value object, bounds[3];
  KF_TRY(evaluate(j, n->a, &object));
  const kf_j_node *bound = n->list;
  for (int i = 0; i < 3; i++, bound = bound->next) KF_TRY(evaluate(j, bound, &bounds[i]));
  return kf_j_slice(j, object, bounds, out);
}

static kf_status evaluate_filter(kf_jinja *j, const kf_j_node *n, kf_j_value *out) {
  kf_j_value self;
  kf_j_args a;
  KF_TRY(evaluate(j, n->a, &self));
  KF_TRY(arguments(j, n->list, &a));
  j->line = n->line;
  return kf_j_filter(j, n->name->data, self, &a, out);
}

static kf_status evaluate_test(kf_jinja *j, const kf_j_node *n, kf_j_value *out) {
  kf_j_value self;
  kf_j_args a;
  bool yes;
  KF_TRY(evaluate(j, n->a, &self));
  KF_TRY(arguments(j, n->list, &a));
  j->line = n->line;
  KF_TRY(kf_j_test(j, n->name->data, self, &a, &yes));
  *out = kf_j_bool(yes);
  return KF_OK;
}

static kf_status evaluate_condition(kf_jinja *j, const kf_j_node *n, kf_j_value *out) {
  kf_j_value condition;
  KF_TRY(evaluate(j, n->b, &condition));
  if (kf_j_truth(condition)) return evaluate(j, n->a, out);
  if (n->other) return evaluate(j, n->other, out);
  return kf_j_undefined(j, out, "the inline if-expression evaluated to false and no else section was defined");
}

static kf_status evaluate_logic(kf_jinja *j, const kf_j_node *n, kf_j_value *out) {
  KF_TRY(evaluate(j, n->a, out));
  return kf_j_truth(*out) == (n->kind == KF_N_AND) ? evaluate(j, n->b, out) : KF_OK;
}

static kf_status holds(kf_jinja *j, int op, kf_j_value a, kf_j_value b, bool *out) {
  int order;
  switch (op) {
  case 'i':
  case 'n': KF_TRY(kf_j_contains(j, b, a, out)); break;
  case KF_OP('=', '='):
  case KF_OP('!', '='): KF_TRY(kf_j_equal(j, a, b, out)); break;
  default:
    KF_TRY(kf_j_order(j, a, b, &order));
    *out = (op & 0xff) == '<' ? order < 0 : order > 0;
    if (op >> 8 && !order) *out = true;
  }
  if (op == 'n' || op == KF_OP('!', '=')) *out = !*out;
  return KF_OK;
}

static kf_status evaluate_compare(kf_jinja *j, const kf_j_node *n, kf_j_value *out) {
  kf_j_value left, right;
  bool yes = true;
  KF_TRY(evaluate(j, n->a, &left));
  for (const kf_j_node *operand = n->list; yes && operand; operand = operand->next, left = right) {
    KF_TRY(evaluate(j, operand->a, &right));
    j->line = operand->line;
    KF_TRY(holds(j, operand->op, left, right, &yes));
  }
  *out = kf_j_bool(yes);
  return KF_OK;
}

static kf_status evaluate_concat(kf_jinja *j, const kf_j_node *n, kf_j_value *out) {
  kf_j_builder b = {0};
  for (const kf_j_node *part = n->list; part; part = part->next) {
    kf_j_value v;
    KF_TRY(evaluate(j, part, &v));
    KF_TRY(kf_j_print(j, &b, v));
  }
  return kf_j_built(j, &b, out);
}

static kf_status evaluate_binary(kf_jinja *j, const kf_j_node *n, kf_j_value *out) {
  kf_j_value a, b;
  KF_TRY(evaluate(j, n->a, &a));
  KF_TRY(evaluate(j, n->b, &b));
  j->line = n->line;
  return kf_j_binary(j, n->op, a, b, out);
}

static kf_status evaluate_unary(kf_jinja *j, const kf_j_node *n, kf_j_value *out) {
  kf_j_value v;
  KF_TRY(evaluate(j, n->a, &v));
  if (n->kind == KF_N_NOT) return *out = kf_j_bool(!kf_j_truth(v)), KF_OK;
  if (n->kind == KF_N_NEGATE) return kf_j_negate(j, v, out);
  KF_TRY(kf_j_defined(j, v));
  *out = v.kind == KF_J_BOOL ? kf_j_int(v.integer) : v;
  return kf_j_number(v) ? KF_OK : kf_j_fail(j, "bad operand for unary +: %s", kf_j_type(v));
}

static kf_status evaluate_kind(kf_jinja *j, const kf_j_node *n, kf_j_value *out) {
  switch (n->kind) {
  case KF_N_CAPTURED:
  case KF_N_CONSTANT: *out = n->value; return KF_OK;
  case KF_N_NAME: return evaluate_name(j, n->name, out);
  case KF_N_LIST:
  case KF_N_TUPLE: return evaluate_list(j, n, out);
  case KF_N_DICT: return evaluate_dict(j, n, out);
  case KF_N_ATTRIBUTE: return evaluate_attribute(j, n, out);
  case KF_N_ITEM: return evaluate_item(j, n, out);
  case KF_N_SLICE: return evaluate_slice(j, n, out);
  case KF_N_CALL: return call(j, n, NULL, out);
  case KF_N_FILTER: return evaluate_filter(j, n, out);
  case KF_N_TEST: return evaluate_test(j, n, out);
  case KF_N_CONDITION: return evaluate_condition(j, n, out);
  case KF_N_OR:
  case KF_N_AND: return evaluate_logic(j, n, out);
  case KF_N_NOT:
  case KF_N_NEGATE:
  case KF_N_PLUS: return evaluate_unary(j, n, out);
  case KF_N_COMPARE: return evaluate_compare(j, n, out);
  case KF_N_CONCAT: return evaluate_concat(j, n, out);
  default: return evaluate_binary(j, n, out);
  }
}

static kf_status evaluate(kf_jinja *j, const kf_j_node *n, kf_j_value *out) {
  j->line = n->line;
  KF_TRY(kf_j_spend(j, 0));
  KF_TRY(kf_j_enter(j));
  KF_TRY(evaluate_kind(j, n, out));
  j->depth--;
  return KF_OK;
}

/* The filters of a block applied to its text. n: KF_N_FILTER around ... around KF_N_CAPTURED. */
static kf_status filter_text(kf_jinja *j, const kf_j_node *n, kf_j_value *text) {
  if (!n || n->kind == KF_N_CAPTURED) return KF_OK;
  kf_j_args a;
  KF_TRY(kf_j_enter(j));
  KF_TRY(filter_text(j, n->a, text));
  KF_TRY(arguments(j, n->list, &a));
  KF_TRY(kf_j_filter(j, n->name->data, *text, &a, text));
  j->depth--;
  return KF_OK;
}

/* ------------------------------------------------------------------------------------------------ statements */

static kf_status execute_if(kf_jinja *j, const kf_j_node *n) {
  for (; n; n = n->other) {
    kf_j_value condition = kf_j_bool(true);
    if (n->a) KF_TRY(evaluate(j, n->a, &condition));
    if (kf_j_truth(condition)) return execute(j, n->body);
  }
  return KF_OK;
}

static kf_status filter_items(kf_jinja *j, const kf_j_node *n, kf_j_list *items) {
  kf_j_list kept = {0};
  kf_j_scope *outer = j->scope;
  KF_TRY(open_scope(j, outer));
  for (size_t i = 0; i < items->count; i++) {
    kf_j_value yes;
    KF_TRY(assign(j, n->target, items->items[i]));
    KF_TRY(evaluate(j, n->b, &yes));
    if (kf_j_truth(yes)) KF_TRY(kf_j_push(j, &kept, items->items[i]));
  }
  j->scope = outer;
  *items = kept;
  return KF_OK;
}

static kf_status run_loop(kf_jinja *j, const kf_j_node *n, kf_j_loop *loop) {
  static const kf_j_string name = {.data = "loop", .bytes = 4, .chars = 4};
  kf_j_value self = {.kind = KF_J_LOOP, .loop = loop};
  for (; loop->index < loop->items.count && j->flow != KF_J_BREAK; loop->index++) {
    j->flow = KF_J_ON;
    j->scope->variables.count = 0; // what one round sets, the next does not see
    KF_TRY(declare(j, &name, self));
    KF_TRY(assign(j, n->target, loop->items.items[loop->index]));
    KF_TRY(execute(j, n->body));
  }
  j->flow = KF_J_ON;
  return KF_OK;
}

static kf_status execute_for(kf_jinja *j, const kf_j_node *n) {
  kf_j_value over;
  kf_j_loop *loop;
  KF_TRY(kf_j_alloc(j, 1, sizeof *loop, &loop));
  KF_TRY(evaluate(j, n->a, &over));
  KF_TRY(kf_j_items(j, over, &loop->items));
  if (n->b) KF_TRY(filter_items(j, n, &loop->items));
  kf_j_scope *outer = j->scope;
  KF_TRY(open_scope(j, outer));
  KF_TRY(loop->items.count ? run_loop(j, n, loop) : execute(j, n->other));
  j->scope = outer;
  return KF_OK;
}

static kf_status execute_set(kf_jinja *j, const kf_j_node *n) {
  kf_j_value v;
  if (n->kind == KF_N_SET) {
    KF_TRY(evaluate(j, n->a, &v));
  } else {
    kf_j_scope *outer = j->scope;
    KF_TRY(open_scope(j, outer));
    KF_TRY(capture(j, n->body, &v));
    j->scope = outer;
    KF_TRY(filter_text(j, n->a, &v));
  }
  return assign(j, n->target, v);
}

static kf_status execute_macro(kf_jinja *j, const kf_j_node *n, kf_j_macro **out) {
  KF_TRY(kf_j_alloc(j, 1, sizeof **out, out));
  **out = (kf_j_macro){.node = n, .scope = j->scope};
  return KF_OK;
}

/* with, generation, filter: a body in a scope of its own. */
static kf_status execute_scope(kf_jinja *j, const kf_j_node *n) {
  kf_j_scope *outer = j->scope;
  kf_j_value text;
  KF_TRY(open_scope(j, outer));
  kf_j_scope *inner = j->scope;
  for (const kf_j_node *set = n->list; set; set = set->next) {
    kf_j_value v;
    j->scope = outer; // the values of `with` do not see its names
    KF_TRY(evaluate(j, set->a, &v));
    j->scope = inner;
    KF_TRY(assign(j, set->target, v));
  }
  if (n->kind == KF_N_FILTER_BLOCK) {
    KF_TRY(capture(j, n->body, &text));
    KF_TRY(filter_text(j, n->a, &text));
    KF_TRY(kf_j_print(j, j->out, text));
  } else {
    KF_TRY(execute(j, n->body));
  }
  j->scope = outer;
  return KF_OK;
}

static kf_status execute_kind(kf_jinja *j, const kf_j_node *n) {
  kf_j_value v = {.kind = KF_J_MACRO};
  kf_j_macro *macro;
  switch (n->kind) {
  case KF_N_TEXT: return kf_j_print(j, j->out, n->value);
  case KF_N_PRINT: KF_TRY(evaluate(j, n->a, &v)); return kf_j_print(j, j->out, v);
  case KF_N_IF: return execute_if(j, n);
  case KF_N_FOR: return execute_for(j, n);
  case KF_N_SET:
  case KF_N_SET_BLOCK: return execute_set(j, n);
  case KF_N_MACRO:
    KF_TRY(execute_macro(j, n, &macro));
    v.macro = macro;
    return declare(j, n->name, v);
  case KF_N_CALL_BLOCK:
    KF_TRY(execute_macro(j, n->other, &macro));
    KF_TRY(call(j, n->a, macro, &v));
    return kf_j_print(j, j->out, v);
  case KF_N_BREAK: j->flow = KF_J_BREAK; return KF_OK;
  case KF_N_CONTINUE: j->flow = KF_J_CONTINUE; return KF_OK;
  default: return execute_scope(j, n);
  }
}

static kf_status execute(kf_jinja *j, const kf_j_node *n) {
  KF_TRY(kf_j_enter(j));
  for (; n && j->flow == KF_J_ON; n = n->next) {
    j->line = n->line;
    KF_TRY(kf_j_spend(j, 0));
    KF_TRY(execute_kind(j, n));
  }
  j->depth--;
  return KF_OK;
}

/* ------------------------------------------------------------------------------------------------ the door */

static kf_status render(kf_jinja *j, const char *source, const json_t *variables) {
  kf_j_token *tokens = NULL;
  kf_j_node *tree;
  kf_j_value all;
  KF_TRY(kf_j_lex(j, source, &tokens));
  KF_TRY(kf_j_parse(j, tokens, &tree));
  KF_TRY(kf_j_from_json(j, variables, &all));
  KF_TRY(open_scope(j, NULL));
  j->scope->variables = *all.dict;
  return execute(j, tree);
}

kf_status kf_jinja_render(const char *source, const json_t *variables, kf_text *out, kf_error *e) {
  kf_j_builder text = {0};
  kf_jinja j = {.line = 1, .e = e, .out = &text};
  *out = (kf_text){0};
  if (!json_is_object(variables)) return kf_fail(e, KF_ERROR_INPUT, "the variables of a chat template are not an object");
  kf_status s = render(&j, source, variables);
  if (s == KF_OK && !(out->data = kf_alloc(text.bytes + 1, 1, e))) s = KF_ERROR_MEMORY;
  if (s == KF_OK && text.bytes) memcpy(out->data, text.data, out->bytes = text.bytes);
  kf_arena_free(&j.arena);
  return s;
}
