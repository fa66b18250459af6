#include "device/cpu/cpu.h"

#include <omp.h>
#include <stdlib.h>

static const char *const isa_names[] = {"portable", "avx2", "avx512", "avx512_bf16"};

kf_isa kf_isa_best(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return __builtin_cpu_supports("avx512bf16") ? KF_ISA_AVX512_BF16 : KF_ISA_AVX512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return KF_ISA_AVX2;
#endif
  return KF_ISA_PORTABLE;
}

const char *kf_cpu_auto_compute(void) {
  return kf_isa_best() == KF_ISA_AVX512_BF16 ? "bf16" : "f32";
}

void *kf_scratch(kf_cpu *c, kf_scratch_slot slot, size_t bytes) {
  if (c->scratch[slot].bytes >= bytes) return c->scratch[slot].data;
  free(c->scratch[slot].data);
  c->scratch[slot].bytes = 0;
  kf_error e = {0};
  c->scratch[slot].data = kf_alloc(bytes + bytes / 4, 1, &e);
  if (!c->scratch[slot].data) {
    if (!c->device.error.status) c->device.error = e;
    return NULL;
  }
  c->scratch[slot].bytes = bytes + bytes / 4;
  return c->scratch[slot].data;
}

int kf_threads_for(const kf_cpu *c, double work) {
  return work < 20000 ? 1 : c->device.threads;
}

static void *cpu_alloc(kf_device *d, size_t count, size_t size, kf_error *e) {
  (void)d;
  return kf_alloc_raw(count, size, e);
}

static void cpu_release(kf_device *d, void *p) {
  (void)d;
  free(p);
}

/* Operations of the CPU have run when they return. */
static void cpu_wait(kf_device *d) {
  (void)d;
}

static void cpu_close(kf_device *d) {
  kf_cpu *c = kf_cpu_of(d);
  kf_onednn_close(c->onednn);
  for (int i = 0; i < KF_SCRATCH_SLOTS; i++) free(c->scratch[i].data);
  free(c);
}

static void choose_kernels(kf_cpu *c) {
  c->vector = &kf_vector_portable;
  c->tile = &kf_tile_portable;
  c->backward = &kf_backward_portable;
#if defined(__x86_64__)
  if (c->isa == KF_ISA_AVX2) {
    c->vector = &kf_vector_avx2;
    c->tile = &kf_tile_avx2;
    c->backward = &kf_backward_avx2;
  } else if (c->isa >= KF_ISA_AVX512) {
    c->vector = &kf_vector_avx512;
    c->backward = &kf_backward_avx512;
    c->tile = c->device.compute == KF_BF16 ? &kf_tile_avx512bf16 : &kf_tile_avx512;
  }
#endif
}

kf_status kf_device_open_isa(kf_isa isa, kf_compute compute, int threads, kf_device **out, kf_error *e) {
  if (isa > kf_isa_best()) return kf_fail(e, KF_ERROR_INPUT, "this CPU does not have the instructions of %s", isa_names[isa]);
  bool native = isa == KF_ISA_AVX512_BF16;
  if (compute == KF_COMPUTE_BF16 && !native)
    return kf_fail(e, KF_ERROR_INPUT, "compute type bf16 needs a CPU with bf16 products (AVX512-BF16); this one has %s: use f32",
                   isa_names[isa]);
  kf_cpu *c;
  KF_NEW(c, 1, e);
  c->isa = isa;
  c->device.name = "cpu";
  c->device.isa = isa_names[isa];
  c->device.compute = compute == KF_COMPUTE_F32 || !native ? KF_F32 : KF_BF16;
  c->device.threads = threads > 0 ? threads : omp_get_num_procs();
  c->device.alloc = cpu_alloc;
  c->device.release = cpu_release;
  c->device.wait = cpu_wait;
  c->device.close = cpu_close;
  choose_kernels(c);
  kf_cpu_linear_table(&c->device);
  kf_cpu_elementwise_table(&c->device);
  kf_cpu_rows_table(&c->device);
  kf_cpu_attention_table(&c->device);
  kf_cpu_heads_table(&c->device);
  kf_cpu_loss_table(&c->device);
  kf_cpu_matrix_table(&c->device);
  kf_cpu_elementwise_backward_table(&c->device);
  kf_cpu_attention_backward_table(&c->device);
  kf_cpu_loss_backward_table(&c->device);
  kf_cpu_optimiser_table(&c->device);
  kf_status s = kf_onednn_open(c->device.threads, &c->onednn, e);
  if (s != KF_OK) {
    cpu_close(&c->device);
    return s;
  }
  *out = &c->device;
  return KF_OK;
}

kf_status kf_device_open_cpu(kf_compute compute, int threads, kf_device **out, kf_error *e) {
  return kf_device_open_isa(kf_isa_best(), compute, threads, out, e);
}
