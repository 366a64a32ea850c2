// `tinyllama convert`: any model that can be read, written as a Hugging Face folder or a GGUF file.
#include "base/error.h"
#include "base/parallel.h"
#include "cli/commands.h"
#include "cli/loading.h"
#include "formats/checkpoint.h"

namespace tinyllama::cli {
namespace {

struct ConvertOptions {
  std::string in, out;
  std::optional<std::string> dtype;
  int threads = 0;
};

// The type most of the model's numbers have, when it is a plain float; F16 for quantized ones.
DType main_type(const Checkpoint& checkpoint) {
  const NamedTensor* q = checkpoint.find("model.layers.0.self_attn.q_proj.weight");
  const DType dtype = q == nullptr ? DType::f32 : q->view.dtype;
  return traits(dtype).quantized ? DType::f16 : dtype;
}

void run(const ConvertOptions& o, Output& out) {
  const Stopwatch watch;
  const Checkpoint checkpoint = open_checkpoint(o.in);
  for (const std::string& text : checkpoint.notes) note("note: " + text);
  const DType dtype = o.dtype ? dtype_from_name(*o.dtype) : main_type(checkpoint);
  ThreadPool pool(o.threads);
  {
    ProgressBar bar;
    if (o.out.ends_with(".gguf")) {
      const auto choose = [dtype](const TensorSpec& spec) {
        return spec.is_norm ? DType::f32 : dtype;
      };
      write_gguf(checkpoint, o.out, choose, pool, bar.callback());
    } else {
      write_hf_folder(checkpoint, o.out, dtype, pool, bar.callback());
    }
  }
  out.print("wrote {} ({}) in {:.1f} s\n", o.out, traits(dtype).name, watch.seconds());
}

}  // namespace

Action convert(Options& options) {
  auto o = std::make_shared<ConvertOptions>();
  options.add(o->in, {.flags = "IN",
                      .help = "A Hugging Face folder, a .gguf or a llama2.c .bin",
                      .placeholder = "PATH",
                      .required = true});
  options.add(
      o->out,
      {.flags = "OUT",
       .help = "A .gguf file (by its name), else a Hugging Face folder; replaced when it exists",
       .placeholder = "PATH",
       .required = true});
  options.add(o->dtype, {.flags = "--dtype",
                         .help = "Type of the weights; unset: as they are, f16 for quantized ones",
                         .choices = {"f32", "f16", "bf16"}});
  options.add(o->threads,
              {.flags = "--threads", .help = "Threads; 0: one per core", .min = 0, .max = 1024});
  options.example("tinyllama convert stories260K.bin stories260K",
                  "llama2.c to a Hugging Face folder");
  options.example("tinyllama convert TinyLlama-1.1B-Chat-v1.0 chat.gguf --dtype f16",
                  "a folder to GGUF");
  return [o](Output& out) { run(*o, out); };
}

}  // namespace tinyllama::cli
