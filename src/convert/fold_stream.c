#include "convert/fold_stream.h"

#include <stdlib.h>
#include <string.h>

void kf_student_forget(kf_student *s, int layer, int64_t elements) {
  static const int no_pairs[1] = {0};
  s->layer[layer].attention =
      (kf_attention_config){.kind = KF_LATENT, .rank = (int)elements, .rope_heads = 1, .rope_pairs = no_pairs};
}

kf_status kf_student_create(const kf_config *source, int64_t elements, const kf_stream *like, kf_student *out, kf_error *e) {
  int64_t count = like->windows * like->window * source->hidden;
  *out = (kf_student){.config = *source, .stream = *like};
  out->stream.x = NULL;
  out->layer = kf_alloc((size_t)source->layers, sizeof *out->layer, e);
  out->mapped = kf_alloc((size_t)source->layers, sizeof *out->mapped, e);
  out->stream.x = kf_alloc((size_t)count, sizeof *out->stream.x, e);
  if (!out->layer || !out->mapped || !out->stream.x) {
    kf_student_free(out);
    return KF_ERROR_MEMORY;
  }
  for (int i = 0; i < source->layers; i++) { /* until a layer is mapped, only the width of its cache rows is known */
    out->layer[i] = source->layer[i];
    kf_student_forget(out, i, elements);
  }
  out->config.layer = out->layer;
  memcpy(out->stream.x, like->x, (size_t)count * sizeof *like->x);
  return KF_OK;
}

void kf_student_free(kf_student *s) {
  for (int i = 0; s->mapped && i < s->config.layers; i++) kf_mapped_free(&s->mapped[i]);
  free(s->mapped);
  free(s->layer);
  free(s->stream.x);
  *s = (kf_student){0};
}

kf_status kf_stream_forward(kf_device *d, kf_run *run, const kf_layer *layer, int index, kf_stream *stream, const kf_watch *watch,
                            kf_error *e) {
  kf_sequence *sequence;
  KF_TRY(kf_sequence_create(stream->config, d, &sequence, e));
  kf_status s = KF_OK;
  for (int w = 0; w < stream->windows && s == KF_OK; w++) {
    kf_span span = {sequence, 0, stream->window, 0};
    s = kf_layer_forward(run, layer, index, stream->x + w * stream->window * stream->config->hidden, &span, 1, watch, e);
  }
  kf_sequence_free(sequence);
  return s;
}

static const kf_mapped_tensor *tensor(const kf_mapped *m, const char *name) {
  for (int i = 0; i < m->tensors; i++)
    if (strcmp(m->tensor[i].name, name) == 0) return &m->tensor[i];
  return NULL;
}

static kf_status pack(kf_device *d, const kf_mapped *m, const char *weight, const char *bias, kf_weight **out, kf_error *e) {
  const kf_mapped_tensor *t = tensor(m, weight), *b = tensor(m, bias);
  return d->pack(d, t->data, b ? b->data : NULL, t->shape[0], t->shape[1], out, e);
}

kf_status kf_layer_mapped(kf_device *d, const kf_layer *teacher, const kf_layer_config *config, const kf_mapped *mapped,
                          kf_layer *out, kf_error *e) {
  const kf_mapped_tensor *kv_b = tensor(mapped, "kv_b_proj.weight");
  kf_status s;
  *out = (kf_layer){.config = config,
                    .input_norm = teacher->input_norm,
                    .post_norm = teacher->post_norm,
                    .o = teacher->o,
                    .gate_up = teacher->gate_up,
                    .down = teacher->down};
  KF_GO(pack(d, mapped, "q_proj.weight", "q_proj.bias", &out->q, e));
  KF_GO(pack(d, mapped, "kv_a_proj.weight", "kv_a_proj.bias", &out->kv_a, e));
  KF_GO(pack(d, mapped, "kv_b_proj.weight", "kv_b_proj.bias", &out->kv_b, e));
  KF_GO(d->plain(d, kv_b->data, kv_b->shape[0], kv_b->shape[1], &out->kv_b_plain, e));
  if (tensor(mapped, "o_proj.weight")) KF_GO(pack(d, mapped, "o_proj.weight", "o_proj.bias", &out->o, e));
  KF_GO(kf_layer_head_rows(out, e));
done:
  if (s != KF_OK) kf_layer_mapped_free(out, teacher, d);
  return s;
}

void kf_layer_mapped_free(kf_layer *l, const kf_layer *teacher, kf_device *d) {
  kf_weight *own[] = {l->q, l->kv_a, l->kv_b, l->kv_b_plain, l->o == teacher->o ? NULL : l->o};
  for (size_t i = 0; i < sizeof own / sizeof *own; i++)
    if (own[i]) d->weight_free(d, own[i]);
  free(l->key_rows);
  free(l->value_rows);
  *l = (kf_layer){0};
}
