#include "device/cpu/onednn.h"

#include <dnnl.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { KEPT = 256, SOURCE = 0, WEIGHTS, TARGET, BIAS, MEMORIES };

typedef struct product {
  kf_onednn_shape shape;
  dnnl_primitive_t primitive;
  dnnl_memory_t memory[MEMORIES];
} product;

struct kf_onednn {
  dnnl_engine_t engine;
  dnnl_stream_t stream;
  int threads;
  product kept[KEPT]; /* by shape: layers of equal shape share one */
  int next;           /* the oldest, which goes when all are taken */
};

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t layout;

static dnnl_status_t layout_create(layout *out, const dnnl_dims_t dims, dnnl_data_type_t type, dnnl_format_tag_t tag) {
  return dnnl_memory_desc_create_with_tag(out, 2, dims, type, tag);
}
static void layout_free(layout *l) {
  if (*l) dnnl_memory_desc_destroy(*l);
}
static dnnl_status_t append_sum(dnnl_post_ops_t ops) {
  return dnnl_post_ops_append_sum(ops, 1, 0, dnnl_data_type_undef);
}
static dnnl_status_t memory_create(dnnl_memory_t *out, layout *l, dnnl_engine_t engine) {
  return dnnl_memory_create(out, *l, engine, DNNL_MEMORY_NONE);
}
static dnnl_status_t matmul_create(dnnl_primitive_desc_t *out, dnnl_engine_t engine, layout l[MEMORIES], bool bias,
                                   dnnl_primitive_attr_t attr) {
  return dnnl_matmul_primitive_desc_create(out, engine, l[SOURCE], l[WEIGHTS], bias ? l[BIAS] : NULL, l[TARGET], attr);
}
#else
typedef dnnl_memory_desc_t layout;

static dnnl_status_t layout_create(layout *out, const dnnl_dims_t dims, dnnl_data_type_t type, dnnl_format_tag_t tag) {
  return dnnl_memory_desc_init_by_tag(out, 2, dims, type, tag);
}
static void layout_free(layout *l) {
  (void)l;
}
static dnnl_status_t append_sum(dnnl_post_ops_t ops) {
  return dnnl_post_ops_append_sum(ops, 1);
}
static dnnl_status_t memory_create(dnnl_memory_t *out, layout *l, dnnl_engine_t engine) {
  return dnnl_memory_create(out, l, engine, DNNL_MEMORY_NONE);
}
static dnnl_status_t matmul_create(dnnl_primitive_desc_t *out, dnnl_engine_t engine, layout l[MEMORIES], bool bias,
                                   dnnl_primitive_attr_t attr) {
  dnnl_matmul_desc_t d;
  dnnl_status_t s = dnnl_matmul_desc_init(&d, &l[SOURCE], &l[WEIGHTS], bias ? &l[BIAS] : NULL, &l[TARGET]);
  return s == dnnl_success ? dnnl_primitive_desc_create(out, &d, attr, engine, NULL) : s;
}
#endif

kf_status kf_onednn_open(int threads, kf_onednn **out, kf_error *e) {
  kf_onednn *o;
  KF_NEW(o, 1, e);
  o->threads = threads;
  dnnl_status_t s = dnnl_engine_create(&o->engine, dnnl_cpu, 0);
  if (s == dnnl_success) s = dnnl_stream_create(&o->stream, o->engine, dnnl_stream_default_flags);
  if (s != dnnl_success) {
    kf_onednn_close(o);
    return kf_fail(e, KF_ERROR_MEMORY, "oneDNN could not be started (its status %d)", (int)s);
  }
  *out = o;
  return KF_OK;
}

static void product_free(product *p) {
  for (int i = 0; i < MEMORIES; i++) {
    if (p->memory[i]) dnnl_memory_destroy(p->memory[i]);
  }
  if (p->primitive) dnnl_primitive_destroy(p->primitive);
  memset(p, 0, sizeof *p);
}

void kf_onednn_close(kf_onednn *o) {
  if (!o) return;
  for (int i = 0; i < KEPT; i++) product_free(&o->kept[i]);
  if (o->stream) dnnl_stream_destroy(o->stream);
  if (o->engine) dnnl_engine_destroy(o->engine);
  free(o);
}

static dnnl_format_tag_t weight_tag(const kf_onednn_shape *shape) {
  if (!shape->panels) return shape->weights_transposed ? dnnl_ab : dnnl_ba;
  return shape->type == KF_BF16 ? dnnl_BA16a64b2a : dnnl_BA16a64b;
}

static dnnl_status_t create_layouts(const kf_onednn_shape *shape, layout l[MEMORIES]) {
  dnnl_data_type_t type = shape->type == KF_BF16 ? dnnl_bf16 : dnnl_f32;
  dnnl_dims_t x = {shape->m, shape->k}, w = {shape->k, shape->n}, y = {shape->m, shape->n}, b = {1, shape->n};
  dnnl_status_t s = layout_create(&l[SOURCE], x, type, shape->source_transposed ? dnnl_ba : dnnl_ab);
  if (s == dnnl_success) s = layout_create(&l[WEIGHTS], w, type, weight_tag(shape));
  if (s == dnnl_success) s = layout_create(&l[TARGET], y, dnnl_f32, dnnl_ab);
  if (s == dnnl_success) s = layout_create(&l[BIAS], b, dnnl_f32, dnnl_ab);
  return s;
}

static dnnl_status_t create_attributes(const kf_onednn_shape *shape, dnnl_primitive_attr_t *attr, dnnl_post_ops_t *ops) {
  dnnl_status_t s = dnnl_primitive_attr_create(attr);
  if (s != dnnl_success || !shape->add) return s;
  s = dnnl_post_ops_create(ops);
  if (s == dnnl_success) s = append_sum(*ops);
  if (s == dnnl_success) s = dnnl_primitive_attr_set_post_ops(*attr, *ops);
  return s;
}

static dnnl_status_t product_create(kf_onednn *o, const kf_onednn_shape *shape, product *p) {
  layout l[MEMORIES] = {0};
  dnnl_primitive_attr_t attr = NULL;
  dnnl_post_ops_t ops = NULL;
  dnnl_primitive_desc_t desc = NULL;
  p->shape = *shape;
  dnnl_status_t s = create_layouts(shape, l);
  if (s == dnnl_success) s = create_attributes(shape, &attr, &ops);
  if (s == dnnl_success) s = matmul_create(&desc, o->engine, l, shape->bias, attr);
  if (s == dnnl_success) s = dnnl_primitive_create(&p->primitive, desc);
  for (int i = 0; i < MEMORIES && s == dnnl_success; i++) s = memory_create(&p->memory[i], &l[i], o->engine);
  if (desc) dnnl_primitive_desc_destroy(desc);
  if (ops) dnnl_post_ops_destroy(ops);
  if (attr) dnnl_primitive_attr_destroy(attr);
  for (int i = 0; i < MEMORIES; i++) layout_free(&l[i]);
  return s;
}

static bool same(const kf_onednn_shape *a, const kf_onednn_shape *b) {
  return a->m == b->m && a->n == b->n && a->k == b->k && a->type == b->type && a->panels == b->panels && a->bias == b->bias &&
         a->add == b->add && a->source_transposed == b->source_transposed && a->weights_transposed == b->weights_transposed;
}

static dnnl_status_t find(kf_onednn *o, const kf_onednn_shape *shape, product **out) {
  for (int i = 0; i < KEPT; i++) {
    *out = &o->kept[i];
    if ((*out)->primitive && same(&(*out)->shape, shape)) return dnnl_success;
  }
  *out = &o->kept[o->next];
  o->next = (o->next + 1) % KEPT;
  product_free(*out);
  dnnl_status_t s = product_create(o, shape, *out);
  if (s != dnnl_success) product_free(*out);
  return s;
}

static dnnl_status_t execute(kf_onednn *o, product *p, float *y, const void *x, const void *w, const float *bias) {
  /* oneDNN does not write its inputs; its C interface has no const. */
  void *data[MEMORIES] = {
      [SOURCE] = (void *)(uintptr_t)x, [WEIGHTS] = (void *)(uintptr_t)w, [TARGET] = y, [BIAS] = (void *)(uintptr_t)bias};
  dnnl_status_t s = dnnl_success;
  for (int i = 0; i < MEMORIES && s == dnnl_success; i++) s = dnnl_memory_set_data_handle(p->memory[i], data[i]);
  if (s != dnnl_success) return s;
  dnnl_exec_arg_t args[MEMORIES] = {{DNNL_ARG_SRC, p->memory[SOURCE]},
                                    {DNNL_ARG_WEIGHTS, p->memory[WEIGHTS]},
                                    {DNNL_ARG_DST, p->memory[TARGET]},
                                    {DNNL_ARG_BIAS, p->memory[BIAS]}};
  s = dnnl_primitive_execute(p->primitive, o->stream, bias ? MEMORIES : MEMORIES - 1, args);
  return s == dnnl_success ? dnnl_stream_wait(o->stream) : s;
}

kf_status kf_onednn_linear(kf_onednn *o, const kf_onednn_shape *shape, float *y, const void *x, const void *w, const float *bias,
                           kf_error *e) {
  /* oneDNN starts as many threads as OpenMP would here, both when it plans and when it runs. The setting belongs to the
   * calling thread alone and is put back. */
  int before = omp_get_max_threads();
  omp_set_num_threads(o->threads);
  product *p;
  dnnl_status_t s = find(o, shape, &p);
  if (s == dnnl_success) s = execute(o, p, y, x, w, bias);
  omp_set_num_threads(before);
  if (s != dnnl_success)
    return kf_fail(e, KF_ERROR_MEMORY, "oneDNN could not multiply [%lld, %lld] by [%lld, %lld] (its status %d)",
                   (long long)shape->m, (long long)shape->k, (long long)shape->k, (long long)shape->n, (int)s);
  return KF_OK;
}
