/* Grouped and latent attention as the flash loop sees them. */
#include "device/cpu/flash.h"

enum { SEQUENCES = 64 }; /* handed to the flash loop at once */

static void attention(kf_device *d, const kf_attention_shape *shape, const kf_attention *sequences, int count) {
  kf_flash_sequence list[SEQUENCES];
  kf_flash f = {.groups = shape->kv_heads,
                .heads = shape->heads / shape->kv_heads,
                .d_k = shape->d_qk,
                .d_v = shape->d_v,
                .value_column = (int64_t)shape->kv_heads * shape->d_qk,
                .scale = shape->scale,
                .window = shape->window,
                .sequences = list};
  for (int first = 0; first < count; first += f.count) {
    f.count = (int)kf_least(SEQUENCES, count - first);
    for (int i = 0; i < f.count; i++) {
      const kf_attention *s = &sequences[first + i];
      list[i] = (kf_flash_sequence){s->rows, s->m, s->past, s->q, NULL, s->q_stride, s->out};
    }
    kf_flash_run(kf_cpu_of(d), &f);
  }
}

/* One group: all heads read the same latents, as keys and as values. */
static void latent_attention(kf_device *d, const kf_latent_shape *shape, const kf_latent_attention *sequences, int count) {
  kf_flash_sequence list[SEQUENCES];
  int64_t columns = shape->rank;
  for (int g = 0; g < shape->kv_heads; g++) columns = kf_most(columns, (int64_t)shape->rope_offset[g] + shape->rope_width[g]);
  kf_flash f = {.groups = 1,
                .heads = shape->heads,
                .d_k = columns,
                .d_v = shape->rank,
                .scale = shape->scale,
                .window = shape->window,
                .latent = shape,
                .sequences = list};
  for (int first = 0; first < count; first += f.count) {
    f.count = (int)kf_least(SEQUENCES, count - first);
    for (int i = 0; i < f.count; i++) {
      const kf_latent_attention *s = &sequences[first + i];
      list[i] = (kf_flash_sequence){s->rows, s->m, s->past, s->q_latent, s->q_rope, 0, s->out};
    }
    kf_flash_run(kf_cpu_of(d), &f);
  }
}

void kf_cpu_attention_table(kf_device *d) {
  d->attention = attention;
  d->latent_attention = latent_attention;
}
