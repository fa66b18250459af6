/* The streams of hidden states that a fold conversion carries from layer to layer: the teacher's over calibration and tuning
 * windows, and converted models' beside it. One layer's weights are in memory at a time. */
#ifndef KF_CONVERT_FOLD_STREAM_H
#define KF_CONVERT_FOLD_STREAM_H

#include "convert/fold_layer.h"

enum { KF_FOLD_WINDOW = 512 };

typedef struct kf_stream {
  const kf_config *config; /* of the model that the hidden states belong to; cache widths are read from it */
  int windows;
  int64_t window; /* tokens of each */
  float *x;       /* [windows, window, hidden] */
} kf_stream;

/* A model whose layers arrive one by one: the source's configuration with latent layers of `elements` a token. */
typedef struct kf_student {
  kf_config config;       /* layer: the list below */
  kf_layer_config *layer; /* [layers] */
  kf_mapped *mapped;      /* [layers] what layer[i].attention points into; its tensors are freed once packed */
  kf_stream stream;
} kf_student;

kf_status kf_student_create(const kf_config *source, int64_t elements, const kf_stream *like, kf_student *out, kf_error *e);
void kf_student_free(kf_student *s);
/* A layer's description again without what a kf_mapped owns; its cache rows keep their width. */
void kf_student_forget(kf_student *s, int layer, int64_t elements);

/* Runs every window of the stream through a layer, in place. */
kf_status kf_stream_forward(kf_device *d, kf_run *run, const kf_layer *layer, int index, kf_stream *stream, const kf_watch *watch,
                            kf_error *e);

/* teacher's layer with its attention replaced by what was mapped; norms, MLP and (unless mapped) the output projection are the
 * teacher's own. Free with kf_layer_mapped_free. mapped's attention must outlive it (student->layer[index]). */
kf_status kf_layer_mapped(kf_device *d, const kf_layer *teacher, const kf_layer_config *config, const kf_mapped *mapped,
                          kf_layer *out, kf_error *e);
void kf_layer_mapped_free(kf_layer *l, const kf_layer *teacher, kf_device *d);

#endif
