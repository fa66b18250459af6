/* Jansson, with the file and the key in every complaint. */
#ifndef KF_BASE_JSON_H
#define KF_BASE_JSON_H

#include <jansson.h>

#include "base/error.h"

/* Parses a file or a piece of memory (named `what` in messages) that must hold an object. */
kf_status kf_json_read(const char *path, json_t **out, kf_error *e);
kf_status kf_json_parse(const char *what, const char *text, size_t bytes, json_t **out, kf_error *e);
kf_status kf_json_write(const char *path, const json_t *value, kf_error *e); /* atomic, 2 spaces, keys in order */

/* Typed members of an object. A missing or null member gives the fallback; a wrong type or a value outside [low, high]
 * is an error that names file and key. Integers may be written as 1 or 1.0. */
kf_status kf_json_int(const json_t *o, const char *file, const char *key, int64_t fallback, int64_t low, int64_t high,
                      int64_t *out, kf_error *e);
kf_status kf_json_real(const json_t *o, const char *file, const char *key, double fallback, double low, double high, double *out,
                       kf_error *e);
kf_status kf_json_bool(const json_t *o, const char *file, const char *key, bool fallback, bool *out, kf_error *e);
/* The pointer lives as long as o; NULL fallback allowed. */
kf_status kf_json_string(const json_t *o, const char *file, const char *key, const char *fallback, const char **out, kf_error *e);

#endif
