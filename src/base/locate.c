/* Where a MODEL is: a path, or a repository in the local Hugging Face cache, laid out as
 *   HUB/models--org--name/refs/REVISION            holds a commit hash
 *   HUB/models--org--name/snapshots/HASH/...       links to the files of that commit */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/file.h"

static bool ends_in_gguf(const char *path) {
  size_t n = strlen(path);
  return n > 5 && strcasecmp(path + n - 5, ".gguf") == 0;
}

static kf_status hub_directory(char out[KF_PATH], kf_error *e) {
  static const struct {
    const char *variable, *below;
  } places[] = {
      {"HF_HUB_CACHE", ""}, {"HF_HOME", "/hub"}, {"XDG_CACHE_HOME", "/huggingface/hub"}, {"HOME", "/.cache/huggingface/hub"}};
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    const char *value = getenv(places[i].variable);
    if (!value || !*value) continue;
    if (snprintf(out, KF_PATH, "%s%s", value, places[i].below) >= KF_PATH)
      return kf_fail(e, KF_ERROR_INPUT, "the path in %s is too long", places[i].variable);
    return KF_OK;
  }
  return kf_fail(e, KF_ERROR_INPUT, "no Hugging Face cache: neither HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME nor HOME is set");
}

/* "name" or "org/name" in the characters that the Hub allows; else it can only be meant as a path. */
static bool is_repository(const char *name, size_t bytes) {
  int slashes = 0;
  for (size_t i = 0; i < bytes; i++) {
    char c = name[i];
    bool starts_part = i == 0 || name[i - 1] == '/';
    if (c == '/'      ? starts_part || ++slashes > 1
        : starts_part ? !isalnum((unsigned char)c) && c != '_'
                      : !isalnum((unsigned char)c) && !strchr("._-", c))
      return false;
  }
  return bytes > 0 && bytes < 200 && name[bytes - 1] != '/';
}

/* A branch, tag or hash; it may hold slashes ("refs/pr/1") but must not climb out of refs/. */
static bool is_revision(const char *revision) {
  size_t n = strlen(revision);
  if (n == 0 || n > 200 || revision[0] == '/' || revision[0] == '.' || strstr(revision, "..")) return false;
  for (size_t i = 0; i < n; i++)
    if (!isalnum((unsigned char)revision[i]) && !strchr("._-/+", revision[i])) return false;
  return true;
}

/* The snapshot directory of a revision, "" when the cache has none. */
static kf_status find_snapshot(const char *repository, const char *revision, char out[KF_PATH], kf_error *e) {
  char path[KF_PATH], folder[512];
  const char *hash = revision;
  kf_text reference = {0};
  snprintf(folder, sizeof folder, "refs/%s", revision);
  KF_TRY(kf_join(path, repository, folder, e));
  if (kf_is_file(path)) {
    KF_TRY(kf_read_file(path, 256, &reference, e));
    reference.data[strcspn(reference.data, " \t\r\n")] = 0;
    hash = reference.data;
  }
  kf_status s = KF_OK;
  *out = 0;
  if (is_revision(hash) && !strchr(hash, '/')) {
    snprintf(folder, sizeof folder, "snapshots/%s", hash);
    s = kf_join(out, repository, folder, e);
    if (s == KF_OK && !kf_is_directory(out)) *out = 0;
  }
  kf_text_free(&reference);
  return s;
}

/* A snapshot without config.json stands for its only .gguf file. */
static kf_status choose_file(const char *model, char path[KF_PATH], kf_error *e) {
  char config[KF_PATH], only[256] = "";
  KF_TRY(kf_join(config, path, "config.json", e));
  if (kf_is_file(config)) return KF_OK;
  DIR *d = opendir(path);
  if (!d) return kf_fail_errno(e, "cannot read the directory %s", path);
  int found = 0;
  for (struct dirent *entry; (entry = readdir(d));)
    if (ends_in_gguf(entry->d_name) && ++found) snprintf(only, sizeof only, "%s", entry->d_name);
  closedir(d);
  if (found == 0)
    return kf_fail(
        e, KF_ERROR_INPUT,
        "%s is in the Hugging Face cache without config.json or a .gguf file; fetch it whole: huggingface-cli download %s", model,
        model);
  if (found > 1)
    return kf_fail(e, KF_ERROR_INPUT, "%s has %d .gguf files in the Hugging Face cache; give the path of one of those in %s",
                   model, found, path);
  char file[KF_PATH];
  KF_TRY(kf_join(file, path, only, e));
  memcpy(path, file, KF_PATH);
  return KF_OK;
}

static kf_status locate_in_cache(const char *model, size_t name_bytes, const char *revision, char out[KF_PATH], kf_error *e) {
  char hub[KF_PATH], repository[KF_PATH], folder[512] = "models--";
  KF_TRY(hub_directory(hub, e));
  size_t n = strlen(folder);
  for (size_t i = 0; i < name_bytes; i++) {
    if (model[i] == '/')
      folder[n++] = '-', folder[n++] = '-';
    else
      folder[n++] = model[i];
  }
  folder[n] = 0;
  int name = (int)name_bytes;
  KF_TRY(kf_join(repository, hub, folder, e));
  if (!kf_is_directory(repository))
    return kf_fail(e, KF_ERROR_INPUT,
                   "%.*s is neither a directory nor a .gguf file here, nor in the Hugging Face cache %.150s; fetch it with: "
                   "huggingface-cli download %.*s",
                   name, model, hub, name, model);
  KF_TRY(find_snapshot(repository, revision, out, e));
  if (!*out)
    return kf_fail(
        e, KF_ERROR_INPUT,
        "%.*s is in the Hugging Face cache, but not its revision %s; fetch it with: huggingface-cli download %.*s --revision %s",
        name, model, revision, name, model, revision);
  return choose_file(model, out, e);
}

kf_status kf_locate(const char *model, char out[KF_PATH], kf_error *e) {
  if (!model || !*model) return kf_fail(e, KF_ERROR_INPUT, "no model was named");
  if (strlen(model) >= KF_PATH) return kf_fail(e, KF_ERROR_INPUT, "the model's name is longer than %d bytes", KF_PATH - 1);
  if (kf_is_directory(model) || (kf_is_file(model) && ends_in_gguf(model))) {
    memcpy(out, model, strlen(model) + 1);
    return KF_OK;
  }
  if (kf_is_file(model))
    return kf_fail(e, KF_ERROR_INPUT, "%s is a file that is not named .gguf; give the directory of the model, or a .gguf file",
                   model);
  const char *at = strchr(model, '@');
  size_t name_bytes = at ? (size_t)(at - model) : strlen(model);
  if (!is_repository(model, name_bytes) || ends_in_gguf(model))
    return kf_fail(
        e, KF_ERROR_INPUT,
        "%s does not exist; give a directory, a .gguf file, or the name of a repository in the Hugging Face cache (org/name)",
        model);
  const char *revision = at ? at + 1 : "main";
  if (!is_revision(revision)) return kf_fail(e, KF_ERROR_INPUT, "%s: \"%s\" is not the name of a revision", model, revision);
  return locate_in_cache(model, name_bytes, revision, out, e);
}
