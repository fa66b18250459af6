/* What the files of the CPU device share. */
#ifndef KF_CPU_CPU_H
#define KF_CPU_CPU_H

#include "device/cpu/kernels.h"
#include "device/cpu/onednn.h"

typedef enum kf_isa { KF_ISA_PORTABLE, KF_ISA_AVX2, KF_ISA_AVX512, KF_ISA_AVX512_BF16 } kf_isa;

/* Memory that an operation needs while it runs; kept and reused by the next. */
typedef enum kf_scratch_slot {
  KF_SCRATCH_INPUT,
  KF_SCRATCH_THREADS,
  KF_SCRATCH_TASKS,
  KF_SCRATCH_PARTS,
  KF_SCRATCH_SLOTS
} kf_scratch_slot;

typedef struct kf_cpu {
  kf_device device; /* first: a kf_device is cast to its kf_cpu */
  kf_isa isa;
  const kf_vector_kernels *vector;
  const kf_tile_kernels *tile; /* of the compute type */
  kf_onednn *onednn;
  struct {
    void *data;
    size_t bytes;
  } scratch[KF_SCRATCH_SLOTS];
} kf_cpu;

struct kf_weight {
  kf_dtype type;
  int64_t n, k;
  int64_t inner; /* k padded to whole blocks when in panels */
  bool panels;   /* else plain rows [n, k] */
  void *data;
  float *bias; /* [n] or NULL */
  size_t bytes;
};

static inline kf_cpu *kf_cpu_of(kf_device *d) {
  return (kf_cpu *)d;
}
static inline int64_t kf_round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}
static inline int64_t kf_least(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static inline int64_t kf_most(int64_t a, int64_t b) {
  return a > b ? a : b;
}
static inline size_t kf_element(kf_dtype t) {
  return t == KF_BF16 ? 2 : 4;
}
static inline void *kf_row(const kf_rows *rows, int64_t token) {
  return (char *)rows->pages[token / rows->page_tokens] +
         (size_t)(token % rows->page_tokens * rows->columns) * kf_element(rows->dtype);
}

/* At least `bytes` of 64-byte aligned memory, not cleared; NULL (and the device's error set) when there is none. */
void *kf_scratch(kf_cpu *c, kf_scratch_slot slot, size_t bytes);
/* 1 / root of the mean square of x [n], eps inside the root. */
float kf_inverse_rms(const kf_cpu *c, const float *x, int64_t n, float eps);
/* Threads for work of so many multiply-adds or bytes: 1 when starting others would cost more. */
int kf_threads_for(const kf_cpu *c, double work);

/* The device with at most this instruction set, for tests; an error when the CPU does not have it. */
kf_status kf_device_open_isa(kf_isa isa, kf_compute compute, int threads, kf_device **out, kf_error *e);
kf_isa kf_isa_best(void);

/* One function a group of operations fills its entries of the table. */
void kf_cpu_linear_table(kf_device *d);
void kf_cpu_elementwise_table(kf_device *d);
void kf_cpu_rows_table(kf_device *d);
void kf_cpu_attention_table(kf_device *d);
void kf_cpu_heads_table(kf_device *d);
void kf_cpu_loss_table(kf_device *d);

#endif
