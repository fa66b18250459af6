/* The KV cache: one row per token and layer, in pages. Grouped layers keep K and V, latent layers [c_kv | rope keys]
 * (and, with q/k norms, one factor a KV head), in the device's compute type. */
#ifndef KF_MODEL_CACHE_H
#define KF_MODEL_CACHE_H

#include "device/device.h"
#include "model/config.h"

enum { KF_PAGE_TOKENS = 64 };

typedef struct kf_sequence kf_sequence;

/* Its pages are the device's memory, its rows of the device's compute type. */
kf_status kf_sequence_create(const kf_config *c, kf_device *d, kf_sequence **out, kf_error *e);
void kf_sequence_free(kf_sequence *s);
void kf_sequence_reset(kf_sequence *s); /* length 0; pages are kept for reuse */
int64_t kf_sequence_length(const kf_sequence *s);
/* Makes room for `tokens` rows in a layer (all layers: layer -1). */
kf_status kf_sequence_reserve(kf_sequence *s, int layer, int64_t tokens, kf_error *e);
void kf_sequence_advance(kf_sequence *s, int64_t tokens);
kf_rows kf_sequence_rows(const kf_sequence *s, int layer);
/* Frees the pages of one layer (streaming: earlier layers are not needed again). */
void kf_sequence_drop(kf_sequence *s, int layer);
int64_t kf_sequence_bytes(const kf_sequence *s); /* bytes of the rows in use, all layers */

#endif
