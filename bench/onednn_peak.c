/* What oneDNN's own matmul reaches on a model's shapes: the limit of prefill.
 *
 *   bench_onednn_peak bf16|f32 THREADS M:N:K:COUNT ...
 *
 * For each shape: y [M, N] f32 = x [M, K] W [K, N], weights packed as oneDNN likes them, taken in turn from several
 * copies as a model's layers would be. Prints {"seconds": best time of all of them together, each COUNT times}. */
#include <dnnl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COPIES = 4, PASSES = 7 };

typedef struct product {
  dnnl_primitive_t primitive;
  dnnl_memory_t x, y, w[COPIES];
} product;

typedef struct machine {
  dnnl_engine_t engine;
  dnnl_stream_t stream;
  dnnl_data_type_t type;
} machine;

static void must(dnnl_status_t s, const char *what) {
  if (s == dnnl_success) return;
  fprintf(stderr, "bench_onednn_peak: %s failed with status %d\n", what, (int)s);
  exit(1);
}

#if DNNL_VERSION_MAJOR >= 3
static dnnl_primitive_desc_t describe(const machine *d, const dnnl_dims_t x, const dnnl_dims_t w, const dnnl_dims_t y) {
  dnnl_memory_desc_t xd, wd, yd;
  dnnl_primitive_desc_t out;
  must(dnnl_memory_desc_create_with_tag(&xd, 2, x, d->type, dnnl_ab), "memory descriptor");
  must(dnnl_memory_desc_create_with_tag(&wd, 2, w, d->type, dnnl_format_tag_any), "memory descriptor");
  must(dnnl_memory_desc_create_with_tag(&yd, 2, y, dnnl_f32, dnnl_ab), "memory descriptor");
  must(dnnl_matmul_primitive_desc_create(&out, d->engine, xd, wd, NULL, yd, NULL), "matmul");
  dnnl_memory_desc_destroy(xd);
  dnnl_memory_desc_destroy(wd);
  dnnl_memory_desc_destroy(yd);
  return out;
}
#define DESCRIPTOR_BYTES(m) dnnl_memory_desc_get_size(m)
typedef const_dnnl_memory_desc_t descriptor;
#else
static dnnl_primitive_desc_t describe(const machine *d, const dnnl_dims_t x, const dnnl_dims_t w, const dnnl_dims_t y) {
  dnnl_memory_desc_t xd, wd, yd;
  dnnl_matmul_desc_t matmul;
  dnnl_primitive_desc_t out;
  must(dnnl_memory_desc_init_by_tag(&xd, 2, x, d->type, dnnl_ab), "memory descriptor");
  must(dnnl_memory_desc_init_by_tag(&wd, 2, w, d->type, dnnl_format_tag_any), "memory descriptor");
  must(dnnl_memory_desc_init_by_tag(&yd, 2, y, dnnl_f32, dnnl_ab), "memory descriptor");
  must(dnnl_matmul_desc_init(&matmul, &xd, &wd, NULL, &yd), "matmul");
  must(dnnl_primitive_desc_create(&out, &matmul, NULL, d->engine, NULL), "matmul");
  return out;
}
#define DESCRIPTOR_BYTES(m) dnnl_memory_desc_get_size(m)
typedef const dnnl_memory_desc_t *descriptor;
#endif

/* Memory of the kind that an argument of the primitive wants, filled with small numbers. */
static dnnl_memory_t argument(const machine *d, const_dnnl_primitive_desc_t p, dnnl_query_t which) {
  descriptor md = dnnl_primitive_desc_query_md(p, which, 0);
  dnnl_memory_t out;
  void *data;
  must(dnnl_memory_create(&out, md, d->engine, DNNL_MEMORY_ALLOCATE), "memory");
  must(dnnl_memory_get_data_handle(out, &data), "memory");
  memset(data, 0x3c, DESCRIPTOR_BYTES(md)); /* 0x3c3c.. is 0.0115 in bf16 and in f32 */
  return out;
}

static product product_create(const machine *d, int64_t m, int64_t n, int64_t k) {
  product out;
  dnnl_primitive_desc_t p = describe(d, (dnnl_dims_t){m, k}, (dnnl_dims_t){k, n}, (dnnl_dims_t){m, n});
  out.x = argument(d, p, dnnl_query_src_md);
  out.y = argument(d, p, dnnl_query_dst_md);
  for (int i = 0; i < COPIES; i++) out.w[i] = argument(d, p, dnnl_query_weights_md);
  must(dnnl_primitive_create(&out.primitive, p), "primitive");
  dnnl_primitive_desc_destroy(p);
  return out;
}

static void product_free(product *p) {
  dnnl_primitive_destroy(p->primitive);
  dnnl_memory_destroy(p->x);
  dnnl_memory_destroy(p->y);
  for (int i = 0; i < COPIES; i++) dnnl_memory_destroy(p->w[i]);
}

/* Seconds of `count` products. */
static double product_time(const machine *d, const product *p, int count) {
  double start = omp_get_wtime();
  for (int i = 0; i < count; i++) {
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, p->x}, {DNNL_ARG_WEIGHTS, p->w[i % COPIES]}, {DNNL_ARG_DST, p->y}};
    must(dnnl_primitive_execute(p->primitive, d->stream, 3, arguments), "matmul");
  }
  must(dnnl_stream_wait(d->stream), "stream");
  return omp_get_wtime() - start;
}

int main(int argc, char **argv) {
  if (argc < 4 || (strcmp(argv[1], "bf16") && strcmp(argv[1], "f32"))) {
    fprintf(stderr, "usage: bench_onednn_peak bf16|f32 THREADS M:N:K:COUNT ...\n");
    return 2;
  }
  machine d = {.type = strcmp(argv[1], "bf16") ? dnnl_f32 : dnnl_bf16};
  omp_set_num_threads(atoi(argv[2]));
  must(dnnl_engine_create(&d.engine, dnnl_cpu, 0), "engine");
  must(dnnl_stream_create(&d.stream, d.engine, dnnl_stream_default_flags), "stream");
  double total = 0;
  for (int i = 3; i < argc; i++) {
    long m, n, k;
    int count;
    if (sscanf(argv[i], "%ld:%ld:%ld:%d", &m, &n, &k, &count) != 4) {
      fprintf(stderr, "bench_onednn_peak: %s is no M:N:K:COUNT\n", argv[i]);
      return 2;
    }
    product p = product_create(&d, m, n, k);
    double best = product_time(&d, &p, COPIES) / COPIES * count; /* the warm-up; replaced by a faster pass */
    for (int pass = 0; pass < PASSES; pass++) {
      double t = product_time(&d, &p, count);
      if (t < best) best = t;
    }
    total += best;
    product_free(&p);
  }
  printf("{\"seconds\": %.6f}\n", total);
  dnnl_stream_destroy(d.stream);
  dnnl_engine_destroy(d.engine);
  return 0;
}
