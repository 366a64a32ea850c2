// `tinyllama pretrain`: a training run by its recipe.
#include <sys/sysinfo.h>

#include <csignal>
#include <filesystem>

#include "backend/cpu/probe.h"
#include "base/error.h"
#include "cli/commands.h"
#include "train/metrics.h"
#include "train/tensorboard.h"
#include "train/trainer.h"

namespace tinyllama::cli {
namespace {

struct PretrainOptions {
  std::string recipe, isa;
  std::vector<std::string> set;
  bool resume = false, plan_only = false;
};

volatile std::sig_atomic_t checkpoint_wanted = 0;
extern "C" void on_usr1(int) {
  checkpoint_wanted = 1;
}

// What may be used: all that is free or could be, but a twentieth.
size_t usable_memory() {
  struct sysinfo info = {};
  if (::sysinfo(&info) != 0) return SIZE_MAX;
  return static_cast<size_t>(info.totalram) * info.mem_unit / 20 * 19;
}

// "3 h 12 min", "4 min 10 s", "7 s".
std::string duration(double seconds) {
  const auto s = static_cast<int64_t>(seconds);
  if (s >= 48 * 3600) return fmt::format("{} d {} h", s / 86400, s % 86400 / 3600);
  if (s >= 3600) return fmt::format("{} h {} min", s / 3600, s % 3600 / 60);
  if (s >= 60) return fmt::format("{} min {} s", s / 60, s % 60);
  return fmt::format("{} s", s);
}

void print_plan(const Trainer& trainer, const Recipe& recipe, double peak_gflops, Output& out) {
  const TrainingPlan& p = trainer.plan();
  const Mixture& data = trainer.loader().mixture();
  const int64_t tokens = p.steps * p.tokens_per_step;
  out.print("model    {:.1f} M parameters, {} layers, hidden {}, vocabulary {}\n",
            static_cast<double>(p.parameters) / 1e6, trainer.config().n_layers,
            trainer.config().hidden, trainer.config().vocab_size);
  for (size_t i = 0; i < data.n_sources(); i++) {
    const auto drawn = data.share(i) * static_cast<double>(tokens);
    out.print("data     {:.1f} % {} ({} tokens, {:.2f} epochs)\n", 100 * data.share(i),
              data.folder(i).path(), data.folder(i).n_tokens(),
              drawn / static_cast<double>(data.folder(i).n_tokens()));
  }
  out.print("plan     {} steps of {} tokens in {} micro-batches: {:.1f} M tokens in {}\n", p.steps,
            p.tokens_per_step, p.micro_batches, static_cast<double>(tokens) / 1e6,
            recipe.train.precision);
  out.print(
      "memory   {}: weights {}, packed {}, gradients {}, moments {}, activations {} (keeping "
      "{})\n",
      human_bytes(p.bytes()), human_bytes(p.weight_bytes), human_bytes(p.packed_bytes),
      human_bytes(p.gradient_bytes), human_bytes(p.moment_bytes), human_bytes(p.activation_bytes),
      p.keep == Keep::everything ? "everything" : "layers' inputs");
  out.print(
      "time     at least {} at this machine's {:.0f} GFLOP/s, which MFU is a share of: tokens/s x "
      "(6 (parameters - input embedding) + 12 layers hidden context) / peak\n",
      duration(p.flops_per_token * static_cast<double>(tokens) / (peak_gflops * 1e9)), peak_gflops);
  out.flush();
}

void run(const PretrainOptions& o, Output& out) {
  const Recipe recipe = read_recipe(o.recipe, o.set);
  ThreadPool pool(recipe.train.threads);
  const MachinePeaks machine = measure_machine(pool, o.isa);
  const double bf16 = std::max(machine.bf16_gflops, machine.matrix_bf16_gflops);
  const double peak = recipe.train.precision == "bf16" ? bf16 : machine.fp32_gflops;
  const std::unique_ptr<Backend> backend = make_cpu({recipe.train.threads, o.isa});
  Trainer trainer(recipe, *backend, pool, usable_memory(), o.resume, note);
  print_plan(trainer, recipe, peak, out);
  if (o.plan_only) return;

  MetricsFile metrics(recipe.output.dir + "/metrics.jsonl", trainer.steps_done());
  EventFile events(recipe.output.dir + "/tensorboard", trainer.steps_done());
  if (trainer.steps_done() > 0) out.print("resumed after step {}\n", trainer.steps_done());
  std::signal(SIGUSR1, on_usr1);
  const Stopwatch watch;
  const int64_t first = trainer.steps_done(), steps = recipe.train.steps;
  int64_t saved = first;
  double printed = -1;
  while (!trainer.done() && !InterruptGuard::interrupted()) {
    const StepResult step = trainer.step();
    const double tokens_per_s = static_cast<double>(step.tokens) / step.seconds;
    const bool due =
        recipe.output.checkpoint_every > 0 && step.step % recipe.output.checkpoint_every == 0;
    std::optional<double> validation;
    if (due || trainer.done()) validation = trainer.validate();
    metrics.write(
        {step.step, step.loss, step.lr, step.grad_norm, tokens_per_s, metrics.run(), validation});
    events.write(step.step, {{"train/loss", step.loss},
                             {"train/lr", step.lr},
                             {"train/grad_norm", step.grad_norm},
                             {"train/tokens_per_s", tokens_per_s}});
    if (validation) {
      events.write(step.step, {{"validation/loss", *validation}});
      out.print("step {}  validation loss {:.4f}\n", step.step, *validation);
    }
    if (watch.seconds() - printed >= 1 || trainer.done()) {
      printed = watch.seconds();
      const double mfu = tokens_per_s * trainer.plan().flops_per_token / (peak * 1e9);
      const double eta =
          printed / static_cast<double>(step.step - first) * static_cast<double>(steps - step.step);
      out.print(
          "step {}/{}  loss {:.4f}  lr {:.2e}  |g| {:.3f}  {:.0f} tokens/s  MFU {:.0f} %  {} "
          "left\n",
          step.step, steps, step.loss, step.lr, step.grad_norm, tokens_per_s, 100 * mfu,
          duration(eta));
      out.flush();
    }
    if (due || checkpoint_wanted != 0 || trainer.done() || InterruptGuard::interrupted()) {
      checkpoint_wanted = 0;
      metrics.sync();
      trainer.save();
      saved = step.step;
    }
  }
  if (InterruptGuard::interrupted()) {
    if (saved < trainer.steps_done()) trainer.save();
    out.print("stopped after step {}; the same command with --resume goes on\n",
              trainer.steps_done());
    out.flush();
    return;
  }
  out.print("done: {}/last, {}\n", recipe.output.dir, duration(watch.seconds()));
}

}  // namespace

Action pretrain(Options& options) {
  auto o = std::make_shared<PretrainOptions>();
  options.add(o->recipe,
              {.flags = "RECIPE", .help = "A recipe: recipes/ has some", .required = true});
  options.add(o->set, {.flags = "--set",
                       .help = "Another value for a key of the recipe: train.steps=100",
                       .placeholder = "KEY=VALUE"});
  options.add(o->resume, {.flags = "--resume",
                          .help = "Go on from the newest whole checkpoint of output.dir, or start "
                                  "where there is none"});
  options.add(o->isa, {.flags = "--isa",
                       .help = "Instruction set; unset: the best this processor has",
                       .choices = cpu_isas()});
  options.add(o->plan_only, {.flags = "--plan", .help = "Print the plan and leave"});
  options.example("tinyllama pretrain recipes/small.toml --set train.steps=100", "a short run");
  return [o](Output& out) { run(*o, out); };
}

}  // namespace tinyllama::cli
