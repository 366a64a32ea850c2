// The program as a user drives it: help, exit codes, files in and out, Ctrl-C, a terminal. Models
// are made by `init` with a tokenizer made here, so that no asset is needed.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "base/file.h"
#include "formats/checkpoint.h"
#include "formats/safetensors.h"
#include "formats/sentencepiece_model.h"
#include "support/assets.h"
#include "support/byte_vocab.h"
#include "support/process.h"

namespace tinyllama {
namespace {

using nlohmann::json;
using testing::Finished;
using testing::letters_vocab;
using testing::Process;
using testing::run_program;
using testing::TemporaryFolder;

const std::vector<std::string> kCommands = {
    "chat",       "generate", "tokenize", "info",     "convert",   "quantize", "logits",
    "perplexity", "init",     "prepare",  "pretrain", "tokenizer", "plot",     "bench"};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// A tiny random model with a tokenizer, shared by the tests of one process.
class Cli : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TemporaryFolder;
    std::ofstream(*folder_ / "tokenizer.model") << make_sentencepiece(letters_vocab());
    const Finished made =
        run_program({"init", "--preset", "stories-260k", "--seed", "7", "--out", model(),
                     "--tokenizer", *folder_ / "tokenizer.model", "--dtype", "f32"});
    ASSERT_EQ(made.code, 0) << made.err;
  }
  static void TearDownTestSuite() { delete folder_; }

  static std::string path(const std::string& name) { return *folder_ / name; }
  static std::string model() { return path("model"); }

  static std::vector<int> greedy_ids(const std::string& from) {
    const Finished done = run_program({"generate", "-m", from, "--ids", "1,260,261", "-n", "12",
                                       "--temperature", "0", "--ignore-eos", "--json"});
    EXPECT_EQ(done.code, 0) << done.err;
    return json::parse(done.out).at("ids");
  }

 private:
  static inline TemporaryFolder* folder_ = nullptr;
};

TEST_F(Cli, HelpOfEachCommandIsCompleteAndFits) {
  const Finished all = run_program({"--help"});
  EXPECT_EQ(all.code, 0);
  for (const std::string& command : kCommands) {
    EXPECT_TRUE(contains(all.out, "\n  " + command + " ")) << command;
    const Finished help = run_program({command, "--help"});
    EXPECT_EQ(help.code, 0);
    EXPECT_TRUE(contains(help.out, "Usage: tinyllama " + command)) << help.out;
    EXPECT_TRUE(contains(help.out, "Examples:")) << command;
    for (size_t at = 0, end; at < help.out.size(); at = end + 1) {
      end = help.out.find('\n', at);
      EXPECT_LE(end - at, 110u) << help.out.substr(at, end - at);
    }
  }
}

TEST_F(Cli, FlagsThatScriptsRelyOn) {
  const std::vector<std::pair<std::string, std::vector<std::string>>> flags = {
      {"generate",
       {"-m,--model", "-p,--prompt", "-n,--max-tokens", "--temperature", "--seed", "--threads",
        "--ids", "--json", "--isa", "--kv-type"}},
      {"logits", {"-m,--model", "--ids", "--out", "--threads", "--isa", "--kv-type"}},
      {"tokenize", {"-m,--model", "--file", "--ids", "--lines"}},
      {"tokenizer", {"train", "--vocab-size", "--out", "--json"}},
      {"perplexity", {"-m,--model", "--file", "--context"}},
      {"init", {"--preset", "--seed", "--out"}},
      {"quantize", {"--type"}},
      {"prepare", {"--tokenizer", "--out", "--field", "--filter", "--part", "--json"}},
      {"bench", {"-m,--model", "--json"}}};
  for (const auto& [command, names] : flags)
    for (const std::string& name : names)
      EXPECT_TRUE(contains(run_program({command, "--help"}).out, name)) << command << " " << name;
}

TEST_F(Cli, WrongUsageIsTwoAndSaysWhatWasMeant) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{}, "Usage: tinyllama COMMAND"},
      {{"generat"}, "did you mean generate?"},
      {{"generate", "--temprature", "1"}, "did you mean --temperature?"},
      {{"generate", "-m", model(), "-n", "many"}, "--max-tokens"},
      {{"generate", "-m", model(), "--temperature", "-1"}, "--temperature"},
      {{"generate", "-m", model(), "--ids", "1,x"}, "--ids"},
      {{"generate", "-m", model(), "--ids", "1", "-p", "a"}, "one prompt"},
      {{"tokenizer", "trian", "a", "--out", "b"}, "did you mean train?"},
      {{"tokenizer", "train", "a", "--out", "b", "--vocab-size", "259"}, "--vocab-size"},
      {{"tokenizer", "train", "--out", "b"}, "INPUT"},
      {{"quantize", "a", "b", "--type", "q4"}, "did you mean q4_0?"},
      {{"logits", "-m", model(), "--ids", "1"}, "--out"},
      {{"init", "--preset", "tinyllama-1.1", "--out", path("x")}, "did you mean tinyllama-1.1b?"}};
  for (const auto& [arguments, message] : cases) {
    const Finished done = run_program(arguments);
    EXPECT_EQ(done.code, 2) << message;
    EXPECT_TRUE(contains(done.err, message)) << done.err;
    EXPECT_EQ(done.out, "");
  }
}

TEST_F(Cli, FailureIsOneAndNamesTheFile) {
  std::ofstream(path("cut.gguf")) << "GGUF\3";
  std::ofstream(path("noise.bin")) << std::string(5000, 'x');
  for (const std::string& bad :
       {path("missing.gguf"), path("cut.gguf"), path("noise.bin"), path("")}) {
    const Finished done = run_program({"generate", "-m", bad, "-p", "a"});
    EXPECT_EQ(done.code, 1) << bad;
    EXPECT_TRUE(contains(done.err, path(""))) << done.err;
  }
  EXPECT_EQ(run_program({"generate", "-m", model(), "--ids", "1,99999"}).code, 1);
}

TEST_F(Cli, GenerateJsonHasTheIds) {
  const std::vector<std::string> command = {
      "generate", "-m", model(),  "--ids",        "1,260",      "-n", "9",
      "--seed",   "5",  "--json", "--ignore-eos", "--logprobs", "2"};
  const Finished first = run_program(command), second = run_program(command);
  ASSERT_EQ(first.code, 0) << first.err;
  const json object = json::parse(first.out);
  EXPECT_EQ(object.at("ids").size(), 9u);
  EXPECT_EQ(object.at("prompt_ids"), json({1, 260}));
  EXPECT_EQ(object.at("finish"), "length");
  EXPECT_EQ(object.at("logprobs").size(), 9u);
  EXPECT_EQ(object.at("logprobs").at(0).at("top").size(), 2u);
  EXPECT_EQ(object.at("ids"), json::parse(second.out).at("ids"));
}

TEST_F(Cli, SamplesDifferAndTheFirstIsTheOnlyOnes) {
  const std::vector<std::string> one = {"generate", "-m", model(),  "--ids",       "1", "-n", "16",
                                        "--seed",   "3",  "--json", "--ignore-eos"};
  std::vector<std::string> three = one;
  three.insert(three.end(), {"--n", "3"});
  const json single = json::parse(run_program(one).out), many = json::parse(run_program(three).out);
  ASSERT_EQ(many.at("samples").size(), 3u);
  EXPECT_EQ(many.at("samples").at(0).at("ids"), single.at("ids"));
  EXPECT_NE(many.at("samples").at(1).at("ids"), single.at("ids"));
}

TEST_F(Cli, WithoutTokenizerIdsStillWork) {
  const Finished made =
      run_program({"init", "--preset", "stories-260k", "--out", path("bare"), "--seed", "1"});
  ASSERT_EQ(made.code, 0) << made.err;
  const Finished ids =
      run_program({"generate", "-m", path("bare"), "--ids", "1,2", "-n", "3", "--ignore-eos"});
  EXPECT_EQ(ids.code, 0) << ids.err;
  EXPECT_EQ(std::count(ids.out.begin(), ids.out.end(), ','), 2) << ids.out;
  const Finished text = run_program({"generate", "-m", path("bare"), "-p", "a"});
  EXPECT_EQ(text.code, 1);
  EXPECT_TRUE(contains(text.err, "--ids")) << text.err;
}

TEST_F(Cli, InitDependsOnTheSeedAlone) {
  const auto weights = [](const std::string& name, const std::string& seed,
                          const std::string& threads) {
    const Finished made = run_program({"init", "--preset", "stories-260k", "--seed", seed,
                                       "--threads", threads, "--out", path(name)});
    EXPECT_EQ(made.code, 0) << made.err;
    return read_text_file(path(name) + "/model.safetensors");
  };
  const std::string one = weights("one", "42", "1");
  EXPECT_TRUE(one == weights("three", "42", "3"));
  EXPECT_FALSE(one == weights("other", "43", "1"));
}

TEST_F(Cli, InitFollowsTheRecipe) {
  const Safetensors file = open_safetensors(model() + "/model.safetensors");
  const auto deviation = [&](const std::string& name) {
    double squares = 0;
    const std::vector<float> values = file.at(name).to_f32();
    for (const float value : values) squares += static_cast<double>(value) * value;
    return std::sqrt(squares / static_cast<double>(values.size()));
  };
  const double d = 64, n_layers = 5;  // of the stories-260k preset
  const double everywhere = std::sqrt(2 / (5 * d)), residual = 1 / (std::sqrt(d) * n_layers);
  EXPECT_NEAR(deviation("model.embed_tokens.weight"), everywhere, 0.02 * everywhere);
  EXPECT_NEAR(deviation("model.layers.1.mlp.up_proj.weight"), everywhere, 0.03 * everywhere);
  EXPECT_NEAR(deviation("model.layers.2.mlp.down_proj.weight"), residual, 0.03 * residual);
  EXPECT_NEAR(deviation("model.layers.3.self_attn.o_proj.weight"), residual, 0.05 * residual);
  EXPECT_EQ(deviation("model.norm.weight"), 1);
}

TEST_F(Cli, LogitsAreOneMatrix) {
  std::string ids = "1";  // more than one chunk of the forward pass
  for (int i = 0; i < 300; i++) ids += "," + std::to_string(3 + i % 200);
  const Finished done =
      run_program({"logits", "-m", model(), "--ids", ids, "--out", path("l.safetensors")});
  ASSERT_EQ(done.code, 0) << done.err;
  const Safetensors file = open_safetensors(path("l.safetensors"));
  ASSERT_EQ(file.entries.size(), 1u);
  const SafetensorsEntry& logits = file.at("logits");
  EXPECT_EQ(logits.dtype, "F32");
  const auto vocab = std::ssize(letters_vocab().pieces);
  EXPECT_EQ(logits.shape, (std::vector<int64_t>{301, vocab}));
  const std::vector<float> values = logits.to_f32();
  // Greedy generation takes the largest logit of the last row.
  const auto last = values.end() - vocab;
  const auto best = std::max_element(last, values.end()) - last;
  const Finished next = run_program({"generate", "-m", model(), "--ids", ids, "-n", "1",
                                     "--temperature", "0", "--ignore-eos", "--json"});
  EXPECT_EQ(json::parse(next.out).at("ids"), json({best}));
}

TEST_F(Cli, TokenizeLineByLine) {
  const std::string tokenizer = path("tokenizer.model");
  const Finished lines =
      run_program({"tokenize", "-m", tokenizer, "--ids", "--lines"}, "ab\n\na b");
  EXPECT_EQ(lines.code, 0) << lines.err;
  EXPECT_EQ(lines.out, "259 260 261\n\n259 260 259 261\n");
  std::ofstream(path("text")) << "ab\n";
  EXPECT_EQ(
      run_program({"tokenize", "-m", model(), "--file", path("text"), "--ids", "--lines"}).out,
      "259 260 261\n");
  EXPECT_EQ(run_program({"tokenize", "-m", model(), "--decode", "259,260,261"}).out, "ab\n");
  const Finished as_json = run_program({"tokenize", "-m", model(), "-p", "ab", "--json", "--bos"});
  EXPECT_EQ(json::parse(as_json.out).at("ids"), json({1, 259, 260, 261}));
}

TEST_F(Cli, TokenizerTrainMakesATokenizer) {
  std::filesystem::create_directories(path("texts/more"));
  std::ofstream(path("texts/a.txt")) << "the cat sat on the mat\nthe cat\n";
  std::ofstream(path("texts/more/b.txt")) << "the dog sat on the cat\n";
  std::ofstream(path("texts/ignored.bin")) << "zzzzzzzzzz\n";
  const auto train = [](std::vector<std::string> arguments, const std::string& input = "") {
    arguments.insert(arguments.begin(),
                     {"tokenizer", "train", "--vocab-size", "286", "--character-coverage", "1"});
    return run_program(arguments, input);
  };
  const std::string out = path("trained.model");
  const Finished made = train({"--out", out, "--json", path("texts"), "--threads", "1"});
  ASSERT_EQ(made.code, 0) << made.err;
  const json summary = json::parse(made.out);
  EXPECT_EQ(summary.at("pieces"), 286);
  EXPECT_EQ(summary.at("lines"), 3);
  EXPECT_EQ(summary.at("bytes"), 22 + 7 + 22);
  EXPECT_EQ(summary.at("words"), 14);
  const std::string file = read_text_file(out);

  // The same from any number of threads, from files one by one, and from standard input.
  ASSERT_EQ(train({"--out", out, path("texts"), "--threads", "3"}).code, 0);
  EXPECT_EQ(read_text_file(out), file);
  ASSERT_EQ(train({"--out", out, path("texts/a.txt"), "-"}, "the dog sat on the cat\n").code, 0);
  EXPECT_EQ(read_text_file(out), file);
  const Finished part =
      train({"--out", path("part"), path("texts"), "--max-bytes", "31", "--json"});
  EXPECT_EQ(part.code, 1) << "that is the first file alone";
  EXPECT_TRUE(contains(part.err, "gives only")) << part.err;
  EXPECT_FALSE(std::filesystem::exists(path("part")));

  const Finished table = run_program({"tokenize", "-m", out, "-p", "the cat", "--json"});
  ASSERT_EQ(table.code, 0) << table.err;
  EXPECT_EQ(json::parse(table.out).at("count"), 2);
}

TEST_F(Cli, TokenizerTrainFailsClearlyAndLeavesNothing) {
  std::ofstream(path("kept.model")) << "old";
  std::ofstream(path("latin1.txt")) << "caf\xE9 caf\xE9\n";
  std::filesystem::create_directories(path("nothing"));
  std::ofstream(path("empty.txt")) << "";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {path("absent.txt"), "absent.txt"},
      {path("empty.txt"), "the corpus has no text"},
      {path("nothing"), "no .txt file"},
      {path("latin1.txt"), "2 of its bytes are not UTF-8"}};
  for (const auto& [input, message] : cases) {
    const Finished done = run_program({"tokenizer", "train", "--out", path("kept.model"), input});
    EXPECT_EQ(done.code, 1);
    EXPECT_TRUE(contains(done.err, message)) << done.err;
    EXPECT_EQ(read_text_file(path("kept.model")), "old");
  }
  const Finished unwritable =
      run_program({"tokenizer", "train", "--out", path("no/folder.model"), path("empty.txt")});
  EXPECT_TRUE(contains(unwritable.err, "no/folder.model")) << unwritable.err;
}

TEST_F(Cli, ConvertThereAndBackLosesNothing) {
  ASSERT_EQ(run_program({"convert", model(), path("there.gguf")}).code, 0);
  ASSERT_EQ(run_program({"convert", path("there.gguf"), path("back")}).code, 0);
  EXPECT_TRUE(read_text_file(model() + "/model.safetensors") ==
              read_text_file(path("back") + "/model.safetensors"));
  const std::vector<int> ids = greedy_ids(model());
  EXPECT_EQ(ids.size(), 12u);
  EXPECT_EQ(greedy_ids(path("there.gguf")), ids);
  EXPECT_EQ(greedy_ids(path("back")), ids);
  EXPECT_EQ(run_program({"tokenize", "-m", path("there.gguf"), "-p", "ab", "--ids"}).out,
            "259 260 261\n");
}

TEST_F(Cli, QuantizeMakesASmallerModelThatRuns) {
  const Finished done = run_program({"quantize", model(), path("q8.gguf"), "--type", "q8_0"});
  ASSERT_EQ(done.code, 0) << done.err;
  EXPECT_EQ(greedy_ids(path("q8.gguf")).size(), 12u);
  EXPECT_LT(std::filesystem::file_size(path("q8.gguf")),
            std::filesystem::file_size(model() + "/model.safetensors") / 2);
  const Finished info = run_program({"info", path("q8.gguf"), "--json"});
  EXPECT_TRUE(json::parse(info.out).at("types").contains("q8_0")) << info.out;
}

TEST_F(Cli, PerplexityOfAFile) {
  std::ofstream(path("text.txt"))
      << "the quick brown fox jumps over the lazy dog and runs away again";
  const Finished done = run_program(
      {"perplexity", "-m", model(), "--file", path("text.txt"), "--context", "32", "--json"});
  ASSERT_EQ(done.code, 0) << done.err;
  const json object = json::parse(done.out);
  EXPECT_GT(object.at("perplexity").get<double>(), 50);  // random weights know nothing
  EXPECT_LT(object.at("perplexity").get<double>(), 2000);
}

TEST_F(Cli, BenchKeys) {
  const Finished done =
      run_program({"bench", "-m", model(), "--json", "--prefill", "16,64", "--decode", "1:0,2:16",
                   "-n", "4", "--repeat", "1", "--no-history"});
  ASSERT_EQ(done.code, 0) << done.err;
  const json object = json::parse(done.out);
  for (const char* key : {"read_gbps", "fp32_gflops", "bf16_gflops", "int8_gops"})
    EXPECT_GT(object.at("machine").at(key).get<double>(), 0) << key;
  for (const char* key : {"load_s", "first_token_s", "peak_rss_mb"})
    EXPECT_GT(object.at(key).get<double>(), 0);
  ASSERT_EQ(object.at("prefill").size(), 2u);
  ASSERT_EQ(object.at("decode").size(), 2u);
  for (const char* key : {"tokens", "tokens_per_s", "fraction_of_peak"})
    EXPECT_GT(object.at("prefill").at(1).at(key).get<double>(), 0) << key;
  for (const char* key : {"streams", "context", "tokens_per_s", "fraction_of_bandwidth"})
    EXPECT_GT(object.at("decode").at(1).at(key).get<double>(), 0) << key;
}

// The second run stands beside the first, and a peer beside both; a peer that prints nonsense is an
// error.
TEST_F(Cli, BenchBesideAnEarlierRunAndAPeer) {
  const std::string gguf = path("bench.gguf"), history = path("history/bench.jsonl");
  ASSERT_EQ(run_program({"convert", model(), gguf}).code, 0);
  std::ofstream(path("peer.sh"))
      << R"(case "$*" in *"-p 16 "*) echo '[{"n_prompt":16,"n_gen":0,"avg_ts":2.5}]';;
*) echo '[{"n_prompt":0,"n_gen":4,"n_depth":0,"avg_ts":0.5}]';; esac)";
  std::ofstream(path("batched.sh"))
      << R"(case "$*" in *"-npp 16 -ntg 4 -npl 2 "*) echo loading; echo '{"pl":2,"speed_tg":1.5}';; esac)";
  std::vector<std::string> command = {"bench",
                                      "-m",
                                      gguf,
                                      "--prefill",
                                      "16",
                                      "--decode",
                                      "1:0,2:16",
                                      "-n",
                                      "4",
                                      "--repeat",
                                      "1",
                                      "--history",
                                      history,
                                      "--peer",
                                      "sh " + path("peer.sh"),
                                      "--peer-batched",
                                      "sh " + path("batched.sh")};
  const Finished table = run_program(command);
  ASSERT_EQ(table.code, 0) << table.err;
  EXPECT_NE(table.out.find("2.5 ("), std::string::npos) << table.out;
  EXPECT_EQ(table.out.find("since "), std::string::npos) << table.out;
  const Finished second = run_program(command);
  EXPECT_NE(second.out.find("since 20"), std::string::npos) << second.out;
  command.emplace_back("--json");
  const json object = json::parse(run_program(command).out);
  EXPECT_EQ(object.at("prefill").at(0).at("peer_tokens_per_s"), 2.5);
  EXPECT_EQ(object.at("decode").at(0).at("peer_tokens_per_s"), 0.5);
  EXPECT_EQ(object.at("decode").at(1).at("peer_tokens_per_s"), 1.5);
  std::ifstream lines(history);
  EXPECT_EQ(std::count(std::istreambuf_iterator<char>(lines), {}, '\n'), 3);

  std::ofstream(path("peer.sh")) << "echo nonsense";
  const Finished nonsense = run_program(command);
  EXPECT_EQ(nonsense.code, 1);
  EXPECT_NE(nonsense.err.find("nonsense"), std::string::npos) << nonsense.err;
}

const std::vector<std::string> kEndless = {"generate",     "--ids",       "1,260", "-n", "-1",
                                           "--ignore-eos", "--when-full", "shift", "-m"};
std::vector<std::string> endless(const std::string& model) {
  std::vector<std::string> command = kEndless;
  command.push_back(model);
  return command;
}

TEST_F(Cli, CtrlCEndsGenerateWith130) {
  Process process(endless(model()), Process::Where::pipes);
  ASSERT_TRUE(process.wait_for_bytes(20)) << process.errors;
  process.signal(SIGINT);
  EXPECT_EQ(process.finish(), 130);
}

TEST_F(Cli, AReaderThatLeavesIsNoFailure) {
  Process process(endless(model()), Process::Where::pipes);
  ASSERT_TRUE(process.wait_for_bytes(20)) << process.errors;
  process.close_output();
  EXPECT_EQ(process.finish(), 0) << process.errors;
  EXPECT_EQ(process.errors, "");
}

TEST_F(Cli, AFullDiskIsAFailure) {
  if (!std::filesystem::exists("/dev/full")) return;  // not a Linux
  const std::string command =
      testing::program() + " info " + model() + " > /dev/full 2> " + path("err");
  const int status = std::system(command.c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_TRUE(contains(read_text_file(path("err")), "No space left"))
      << read_text_file(path("err"));
}

TEST_F(Cli, NoModelSaysHowToGetOne) {
  Process process({"chat"}, Process::Where::pipes,
                  {"HOME=" + path("nowhere"), "XDG_CACHE_HOME=", "TINYLLAMA_MODEL="});
  process.close_input();
  const int code = process.finish();
  if (process.errors.starts_with("Using models"))
    return;  // the tests run beside a folder of models
  EXPECT_EQ(code, 1);
  for (const char* part : {"-m", "curl", "tinyllama init"})
    EXPECT_TRUE(contains(process.errors, part)) << process.errors;
}

TEST_F(Cli, TheModelOfTheEnvironmentAndOfTheCache) {
  const std::vector<std::string> command = {"info", "--json"};
  Process named(command, Process::Where::pipes, {"TINYLLAMA_MODEL=" + model()});
  EXPECT_EQ(named.finish(), 0) << named.errors;
  EXPECT_EQ(json::parse(named.output).at("path"), model());
  std::filesystem::create_directories(path("cache") + "/tinyllama");
  const std::string cached = path("cache") + "/tinyllama/some-chat-model";
  std::filesystem::copy(model(), cached);
  Process found(command, Process::Where::pipes,
                {"TINYLLAMA_MODEL=", "XDG_CACHE_HOME=" + path("cache")});
  EXPECT_EQ(found.finish(), 0) << found.errors;
  EXPECT_EQ(json::parse(found.output).at("path"), cached);
}

TEST_F(Cli, PlotsRunsSideBySide) {
  for (const char* name : {"one", "two", "three"}) {
    std::filesystem::create_directory(path(name));
    std::ofstream(path(name) + "/metrics.jsonl")
        << "{\"step\":1,\"loss\":3,\"lr\":0.1,\"grad_norm\":1,\"tokens_per_s\":9,\"run\":0}\n";
  }
  const Finished plotted = run_program({"plot", path("one"), path("two") + "/",
                                        path("three") + "/metrics.jsonl", "-o", path("plot.html")});
  EXPECT_EQ(plotted.code, 0) << plotted.err;
  EXPECT_TRUE(contains(plotted.out, "3 runs, 3 steps")) << plotted.out;
  EXPECT_TRUE(contains(read_text_file(path("plot.html")), path("two") + "</td>"));

  const Finished absent = run_program({"plot", path("none"), "-o", path("absent.html")});
  EXPECT_EQ(absent.code, 1);
  EXPECT_TRUE(contains(absent.err, "want the output folder of a training run")) << absent.err;
  EXPECT_FALSE(std::filesystem::exists(path("absent.html")));
}

TEST_F(Cli, ChatFromAPipe) {
  const Finished done =
      run_program({"chat", "-m", model(), "-n", "8", "--seed", "1"},
                  "hello\n/stats\n/save " + path("c.json") + "\n/regen\n/undo\n/halp\n");
  EXPECT_EQ(done.code, 0) << done.err;
  EXPECT_TRUE(contains(done.err, "tokens/s")) << done.err;
  EXPECT_TRUE(contains(done.out, "Taken back.")) << done.out;
  EXPECT_TRUE(contains(done.out, "did you mean /help?")) << done.out;
  const json saved = json::parse(read_text_file(path("c.json")));
  ASSERT_EQ(saved.size(), 2u);
  EXPECT_EQ(saved.at(0), json({{"role", "user"}, {"content", "hello"}}));
  EXPECT_EQ(saved.at(1).at("role"), "assistant");
}

TEST_F(Cli, ALongChatDropsItsOldestExchanges) {
  std::string messages;
  for (int i = 0; i < 12; i++) messages += std::string(60, static_cast<char>('a' + i)) + "\n";
  const Finished done = run_program(
      {"chat", "-m", model(), "-n", "20", "--context", "256", "--logit-bias", "2:-inf"}, messages);
  EXPECT_EQ(done.code, 0) << done.err;
  EXPECT_TRUE(contains(done.err, "left out")) << done.err;
  size_t answers = 0;
  for (size_t at = 0; (at = done.err.find("[20 tokens", at)) != std::string::npos; at++) answers++;
  EXPECT_EQ(answers, 12u) << done.err;
}

TEST_F(Cli, ChatInATerminal) {
  Process process(
      {"chat", "-m", model(), "--no-history", "--when-full", "shift", "--logit-bias", "2:-inf"},
      Process::Where::terminal);
  ASSERT_TRUE(process.wait_for("/help shows the commands.")) << process.output;
  ASSERT_TRUE(process.wait_for("> "));
  process.send("/help\n");
  ASSERT_TRUE(process.wait_for("/regen")) << process.output;
  ASSERT_TRUE(process.wait_for("> "));
  process.send("hello\n");
  ASSERT_TRUE(process.wait_for("hello"));
  ASSERT_TRUE(process.wait_for_bytes(process.output.size() + 100)) << process.output;
  process.send("\x03");  // stops the answer, not the program
  ASSERT_TRUE(process.wait_for("; stopped]")) << process.output;
  ASSERT_TRUE(process.wait_for("> "));
  process.send("abc\x03");  // at the prompt: forgets the line and says how to leave
  ASSERT_TRUE(process.wait_for("Ctrl-C again")) << process.output;
  ASSERT_TRUE(process.wait_for("> "));
  process.send("/quit\n");
  EXPECT_EQ(process.finish(), 0) << process.output;
}

TEST_F(Cli, ChatIsLeftByTwoCtrlCOrCtrlD) {
  const std::vector<std::string> command = {"chat", "-m", model(), "--no-history"};
  Process twice(command, Process::Where::terminal);
  ASSERT_TRUE(twice.wait_for("> ")) << twice.output;
  twice.send("\x03");
  ASSERT_TRUE(twice.wait_for("Ctrl-C again")) << twice.output;
  ASSERT_TRUE(twice.wait_for("> "));
  twice.send("\x03");
  EXPECT_EQ(twice.finish(), 130) << twice.output;
  Process end(command, Process::Where::terminal);
  ASSERT_TRUE(end.wait_for("> ")) << end.output;
  // A terminal swallows a Ctrl-D that comes while the editor takes it over, just after the prompt.
  for (int i = 0; i < 50 && !end.ends_within(std::chrono::milliseconds(200)); i++) end.send("\x04");
  EXPECT_EQ(end.finish(), 0) << end.output;
}

TEST_F(Cli, PrepareFromAPipeAndAFile) {
  const std::string rows = "{\"text\":\"one\"}\nbroken\n{\"text\":\"two\"}\n";
  const std::vector<std::string> command = {"prepare",  "--tokenizer", path("tokenizer.model"),
                                            "--format", "jsonl",       "-",
                                            "--out",    path("piped"), "--json"};
  const Finished piped = run_program(command, rows);
  ASSERT_EQ(piped.code, 0) << piped.err;
  const json summary = json::parse(piped.out);
  EXPECT_EQ(summary.at("documents"), 2);
  EXPECT_EQ(summary.at("malformed"), 1);
  EXPECT_EQ(summary.at("text_bytes"), 6);
  EXPECT_TRUE(contains(piped.err, "skipped standard input:2: not JSON")) << piped.err;
  std::ofstream(path("rows.jsonl")) << rows;
  const std::vector<std::string> from_file = {"prepare",     path("rows.jsonl"),
                                              "--tokenizer", path("tokenizer.model"),
                                              "--out",       path("filed")};
  const Finished filed = run_program(from_file);
  ASSERT_EQ(filed.code, 0) << filed.err;
  EXPECT_TRUE(contains(filed.out, "tokens of 2 documents (6 B of text) in 1 shards")) << filed.out;
  EXPECT_TRUE(contains(filed.out, "skipped 0 empty, 0 filtered out, 1 malformed")) << filed.out;
  EXPECT_EQ(read_text_file(path("piped/shard-000000.tok")),
            read_text_file(path("filed/shard-000000.tok")));
  EXPECT_TRUE(contains(run_program(from_file).out, "complete already:"));
}

TEST_F(Cli, PrepareSaysWhatIsWrong) {
  std::ofstream(path("bad.jsonl")) << "{\"text\":\"one\"}\nbroken\n";
  const auto with = [&](std::vector<std::string> more) {
    std::vector<std::string> command = {
        "prepare", path("bad.jsonl"), "--tokenizer", path("tokenizer.model"), "--out", path("bad")};
    command.insert(command.end(), more.begin(), more.end());
    return run_program(command);
  };
  const Finished strict = with({"--bad-rows", "fail"});
  EXPECT_EQ(strict.code, 1);
  EXPECT_TRUE(contains(strict.err, "bad.jsonl:2: not JSON")) << strict.err;
  EXPECT_EQ(with({"--part", "3/2"}).code, 2);
  EXPECT_EQ(with({"--format", "jsonlines"}).code, 2);
  EXPECT_TRUE(contains(with({"--filter", "lang"}).err, "FIELD=VALUE"));
  EXPECT_EQ(with({}).code, 0);
  const Finished other = with({"--bos"});
  EXPECT_EQ(other.code, 1);
  EXPECT_TRUE(contains(other.err, "bos was false, now it is true")) << other.err;
}

// Killed at whatever moment, then run again: the same bytes as in one go.
TEST_F(Cli, PrepareSurvivesKills) {
  std::ofstream rows(path("many.jsonl"));
  for (int i = 0; i < 60000; i++)
    rows << "{\"text\":\"" << std::string(static_cast<size_t>(i % 97), 'a') << i << "\"}\n";
  rows.close();
  const auto command = [&](const std::string& out) {
    return std::vector<std::string>{"prepare",        path("many.jsonl"),
                                    "--out",          path(out),
                                    "--tokenizer",    path("tokenizer.model"),
                                    "--threads",      "1",
                                    "--shard-tokens", "50000"};
  };
  ASSERT_EQ(run_program(command("one-go")).code, 0);
  for (int ms = 4; ms < 100; ms += 8) {
    Process process(command("killed"), Process::Where::pipes);
    process.ends_within(std::chrono::milliseconds(ms));
    process.signal(SIGKILL);
    process.finish();
  }
  const Finished last = run_program(command("killed"));
  ASSERT_EQ(last.code, 0) << last.err;
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(path("one-go"))) {
    files++;
    EXPECT_EQ(read_text_file(entry.path()),
              read_text_file(path("killed/" + entry.path().filename().string())))
        << entry.path();
  }
  EXPECT_GT(files, 20u);
  for (const auto& entry : std::filesystem::directory_iterator(path("killed"))) {
    EXPECT_TRUE(std::filesystem::exists(path("one-go/" + entry.path().filename().string())))
        << entry.path();
  }
}

}  // namespace
}  // namespace tinyllama
