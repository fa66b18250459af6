/* config.json of what a conversion writes (docs/FORMAT.md). */
#ifndef KF_CONVERT_RECORD_H
#define KF_CONVERT_RECORD_H

#include "convert/plan.h"

/* One element of kvfold.layers; a new reference, NULL when memory ran out. */
json_t *kf_layer_record(const kf_attention_config *a);
/* The whole object: the source's keys and, for a converted model, "kvfold" with the layers [list of kf_layer_record] and
 * the recipe. layers NULL: the source's own configuration, only the dtype and the tied head are brought up to date; with kv_heads
 * above 0 also the number of KV heads, and "kvfold" tells method and recipe. */
kf_status kf_config_record(const kf_config *source, const char *method, const json_t *recipe, const json_t *layers, int kv_heads,
                           kf_dtype dtype, json_t **out, kf_error *e);

#endif
