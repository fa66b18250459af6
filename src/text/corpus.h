/* Files of records: JSON lines (".jsonl"), a JSON array of objects (".json"), or plain text, which is one record; .zst of each. */
#ifndef KF_TEXT_CORPUS_H
#define KF_TEXT_CORPUS_H

#include "base/file.h"
#include "base/json.h"

typedef struct kf_record {
  const char *path;
  int64_t line;         /* from 1; of an array: the element */
  const json_t *object; /* NULL: plain text: */
  const char *text;
  size_t bytes;
} kf_record;

typedef kf_status (*kf_record_visit)(void *user, const kf_record *r, kf_error *e);

/* Shows every record in order. skip: what is not a JSON object is counted in *skipped in place of being an error, which names
 * file and line. The first failure of visit ends it. */
kf_status kf_records_read(const char *path, bool skip, kf_record_visit visit, void *user, int64_t *skipped, kf_error *e);

#endif
