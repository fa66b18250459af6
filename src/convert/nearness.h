/* How near converted models are to their source, judged by the last hidden states of windows that both read. */
#ifndef KF_CONVERT_NEARNESS_H
#define KF_CONVERT_NEARNESS_H

#include "device/device.h"
#include "model/weights.h"

/* Means over the tokens that are predicted: KL(source || converted) in nats; the ratio of perplexities. */
typedef struct kf_nearness {
  double kl, perplexity_ratio;
} kf_nearness;

/* source, converted[i]: [windows, window, hidden] what the last layer gives; ids [windows, window]. w: the source's final norm
 * and head are read from it. out: [count]. */
kf_status kf_nearness_judge(const kf_weights *w, kf_device *d, const int32_t *ids, int windows, int64_t window,
                            const float *source, float *const *converted, int count, kf_nearness *out, kf_error *e);

#endif
