#include "command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>

#include "console.h"
#include "lathe/base/text.h"
#include "lathe/base/version.h"

namespace lathe::app {
namespace {

constexpr std::array<const char*, 8> kTorchVerbs = {"train",    "eval",  "predict",  "logits",
                                                    "quantize", "merge", "practice", "upcycle"};

class Parser {
 public:
  explicit Parser(CommandLine& line) : line_(line) {
    app_.require_subcommand(0, 1);
    app_.get_formatter()->column_width(34);
    app_.footer("\nExample: lathe train quickstart training.batch_size=8\nEach verb has its own --help.");
    app_.add_flag("--debug", line_.debug, "Show where an internal error came from");
    app_.set_version_flag("--version", std::string("lathe ") + version());
    add_recipe_verbs();
    add_model_verbs();
    add_four_bit_verbs();
    add_upcycle();
    add_file_verbs();
  }

  std::optional<int> parse(int argc, char** argv) {
    if (const std::string verb = argc > 1 ? argv[1] : "-"; !verb.starts_with('-') && !is_verb(verb)) {
      print_error(printable("lathe: unknown verb " + quote(verb) + " (" + suggest(verb, verbs()) + ")"));
      return 2;
    }
    try {
      app_.parse(argc, argv);
    } catch (const CLI::Success& success) {
      app_.exit(success, std::cout, std::cerr);
      return 0;
    } catch (const CLI::ParseError& error) {
      print_error(printable(error.what()) + " (see lathe --help)");
      return 2;
    }
    if (app_.get_subcommands().empty()) {
      print_result(app_.help());
      return 0;
    }
    const CLI::App* verb = app_.get_subcommands().front();
    if (const std::string name = empty_option(*verb); !name.empty()) {
      print_error(name + ": expected a value, got an empty word (see lathe " + verb->get_name() + " --help)");
      return 2;
    }
    line_.verb = verb->get_name();
    return std::nullopt;
  }

 private:
  std::vector<std::string> verbs() {
    std::vector<std::string> names;
    for (const CLI::App* verb : app_.get_subcommands({})) names.push_back(verb->get_name());
    return names;
  }
  bool is_verb(const std::string& word) {
    const auto names = verbs();
    return std::find(names.begin(), names.end(), word) != names.end();
  }

  // The name of an option that was given as "" and may not be.
  static std::string empty_option(const CLI::App& verb) {
    for (const CLI::Option* option : verb.get_options()) {
      const auto& words = option->results();
      const std::string name = option->get_name();
      if (name != "--text" && name != "--skip-modules" && std::find(words.begin(), words.end(), "") != words.end())
        return name;
    }
    return "";
  }

  CLI::App* verb(const char* name, const char* description, const char* example) {
    CLI::App* sub = app_.add_subcommand(name, description);
    sub->footer(std::string("\nExample: ") + example);
    return sub;
  }
  void add_overrides(CLI::App* sub) {
    sub->add_option("OVERRIDES", line_.overrides, "key=value or ~key, for example optimizer.lr=1e-3");
  }
  void add_recipe(CLI::App* sub, const char* what = "A recipe file or the name of a ready recipe") {
    sub->add_option("RECIPE", line_.recipe, what)->required();
  }
  void add_model(CLI::App* sub) {
    sub->add_option("--model", line_.model, "Model directory, or hf:org/name in the local cache")->required();
    sub->add_option("--adapter", line_.adapter, "Adapter directory (PEFT's format)");
  }

  // Not bound to the optional itself: "" is a text too.
  CLI::Option* add_text(CLI::App* sub) {
    return sub->add_option_function<std::string>(
        "--text", [this](const std::string& text) { line_.text = text; }, "One text");
  }

  void add_recipe_verbs() {
    CLI::App* train = verb("train", "Train as a recipe says", "lathe train quickstart output.dir=runs/first");
    add_recipe(train);
    add_overrides(train);
    train->add_flag("--resume", line_.resume, "Go on from the run directory's newest checkpoint");
    train
        ->add_option("--profile", line_.profile_steps,
                     "Record N steps after the first into profile/: operators.txt, trace.json")
        ->option_text("N")
        ->check(CLI::Range(1, 1000));
    CLI::App* validate =
        verb("validate", "Check a recipe, and the checkpoint's headers", "lathe validate my.yaml --data");
    add_recipe(validate);
    add_overrides(validate);
    validate->add_flag("--data", line_.data, "Also read the data and the tokenizer");
    CLI::App* plan = verb("plan", "What a recipe will cost: parameters, FLOPs, memory, before a weight is read",
                          "lathe plan quickstart training.batch_size=64");
    add_recipe(plan);
    add_overrides(plan);
    plan->add_flag("--measure", line_.measure, "Also run a step on made-up samples, and compare");
    plan->add_flag("--json", line_.json, "One JSON object");
    CLI::App* eval = verb("eval", "Evaluate a recipe's model or a finished run on data.eval",
                          "lathe eval runs/quickstart data.eval=test.jsonl --json");
    add_recipe(eval, "A recipe, or a run directory");
    add_overrides(eval);
    eval->add_flag("--json", line_.json, "One JSON object");
    verb("ls", "List the ready recipes", "lathe ls");
    CLI::App* show = verb("show", "Print a ready recipe, or every key of a recipe", "lathe show --schema");
    show->add_option("NAME", line_.recipe, "Name of a ready recipe");
    show->add_flag("--schema", line_.schema, "Every key: type, default, meaning");
    CLI::App* cp = verb("cp", "Copy a ready recipe to a file", "lathe cp text/classify_jsonl my.yaml");
    cp->add_option("NAME", line_.recipe, "Name of a ready recipe")->required();
    cp->add_option("DEST", line_.destination, "File to write; must not exist")->required();
  }

  void add_model_verbs() {
    CLI::App* predict = verb("predict", "Label texts or pictures with a trained classifier",
                             "lathe predict --model DIR --adapter runs/quickstart/adapter --text 'You have won'");
    add_model(predict);
    CLI::Option* text = add_text(predict);
    CLI::Option* jsonl = predict->add_option("--jsonl", line_.jsonl, "A file with the field text on each line");
    predict->add_option("--image", line_.images, "PNG or JPEG files")->excludes(text)->excludes(jsonl);
    jsonl->excludes(text);
    predict->add_flag("--json", line_.json, "One JSON object per text or picture");
    CLI::App* logits = verb("logits", "Write a model's logits to a safetensors file",
                            "lathe logits --model DIR --text Hello --out logits.safetensors");
    add_model(logits);
    CLI::Option* ids = logits->add_option("--ids", line_.ids, "Token ids, separated by commas");
    const std::vector<CLI::Option*> inputs = {
        ids, add_text(logits), logits->add_option("--jsonl", line_.jsonl, "A file with the field text on each line"),
        logits->add_option("--image", line_.images, "PNG or JPEG files"),
        logits->add_option("--pixels", line_.pixels,
                           "A safetensors file with pixel_values [N, C, H, W], already normalised")};
    for (CLI::Option* input : inputs) {
      for (CLI::Option* other : inputs) {
        if (other != input) input->excludes(other);
      }
    }
    logits->add_option("--out", line_.out, "File to write")->required();
    logits->add_flag("--truncate", line_.truncate, "Cut texts that are longer than the model allows");
    logits->add_option("--compute", line_.compute, "Type of the products")
        ->check(CLI::IsMember({"float32", "bfloat16"}));
  }

  void add_quantization(CLI::App* sub, const std::string& type) {
    sub->add_option("--type", line_.quant_type, type)->check(CLI::IsMember({"nf4", "fp4"}));
    sub->add_option("--blocksize", line_.blocksize, "Weights that share a scale: 32, 64, 128, ..., 4096")
        ->capture_default_str();
    sub->add_flag("--double-quant", line_.double_quant, "Quantise the scales too: 0.52 bytes a weight, not 0.56");
    sub->add_option("--skip-modules", line_.skip_modules, "Modules that stay dense, separated by commas")
        ->delimiter(',')
        ->capture_default_str();
  }

  void add_four_bit_verbs() {
    CLI::App* quantize = verb("quantize", "Write a model with its linear layers in four bits (bitsandbytes' layout)",
                              "lathe quantize --model DIR --out DIR-nf4 --double-quant");
    quantize->add_option("--model", line_.model, "Model directory, or hf:org/name in the local cache")->required();
    quantize->add_option("--out", line_.out, "Directory to write; must not exist")->required();
    add_quantization(quantize, "nf4 or fp4; nf4 unless given");
    CLI::App* merge = verb("merge", "Write a model with an adapter merged into its weights",
                           "lathe merge --model DIR --adapter runs/quickstart/adapter --out merged");
    add_model(merge);
    merge->get_option("--adapter")->required();
    merge->add_option("--out", line_.out, "Directory to write; must not exist")->required();
    add_quantization(merge, "Merge into this quantisation of the model, decoded: what the adapter was trained on");
    merge->add_flag("--requantize", line_.requantize,
                    "Write four bits again; prints the share of the update that is lost");
  }

  void add_upcycle() {
    CLI::App* upcycle =
        verb("upcycle", "Write a model with experts in place of its MLPs that computes the same at first",
             "lathe upcycle --model DIR --experts 8 --top-k 2 --out DIR-moe");
    upcycle->add_option("--model", line_.model, "Model directory, or hf:org/name in the local cache")->required();
    upcycle->add_option("--out", line_.out, "Directory to write; must not exist")->required();
    const CLI::Range count(1, 65536);
    upcycle->add_option("--experts", line_.experts, "Copies of each MLP")->capture_default_str()->check(count);
    upcycle->add_option("--top-k", line_.top_k, "Experts per token")->capture_default_str()->check(count);
  }

  void add_file_verbs() {
    CLI::App* tokenize = verb("tokenize", "Print the ids of texts, one JSON array per line",
                              "lathe tokenize --model DIR --jsonl texts.jsonl");
    tokenize->add_option("--model", line_.model, "Model directory with tokenizer.json")->required();
    tokenize
        ->add_option("--jsonl", line_.jsonl, "A file with the field text on each line (with --decode: an array of ids)")
        ->required();
    tokenize->add_flag("--no-special", line_.no_special, "Without [CLS], [SEP] and the like");
    tokenize->add_flag("--decode", line_.decode, "From ids to text, special tokens kept");
    CLI::App* inspect = verb("inspect", "Show a safetensors file, a model, an adapter or a run",
                             "lathe inspect runs/quickstart/adapter");
    inspect->add_option("PATH", line_.recipe, "File or directory")->required();
    inspect->add_flag("--json", line_.json, "One JSON object");
    CLI::App* report = verb("report", "Write an HTML page about a run, or several compared",
                            "lathe report runs/quickstart runs/quickstart-2 --out compared.html");
    report->add_option("RUN", line_.runs, "Run directories")->required();
    report->add_option("--out", line_.out, "File to write (default: report.html in the first run's directory)");
    CLI::App* practice =
        verb("practice", "Answer a question of the practice exam with numbers and a run that proves them",
             "lathe practice 3b --full --html 3b.html");
    CLI::Option* question =
        practice->add_option("QUESTION", line_.recipe, "A question, or all; without it the questions are listed");
    practice->add_flag("--full", line_.full, "The long run, of minutes")->needs(question);
    practice->add_option("--variant", line_.variant, "Of 2b and 4b: run one wrong variant beside the mended code")
        ->option_text("NAME")
        ->needs(question);
    practice->add_option("--html", line_.out, "Also write the answer as a page")->option_text("FILE")->needs(question);
    CLI::App* doctor =
        verb("doctor", "What a bug report needs: processor, threads, LibTorch, kernels, memory", "lathe doctor --json");
    doctor->add_flag("--json", line_.json, "One JSON object");
  }

  CommandLine& line_;
  CLI::App app_{"Lathe: native fine-tuning from YAML recipes", "lathe"};
};

}  // namespace

std::optional<int> parse_command_line(int argc, char** argv, CommandLine& line) {
  return Parser(line).parse(argc, argv);
}

bool needs_torch(const std::string& verb) {
  return std::find(kTorchVerbs.begin(), kTorchVerbs.end(), verb) != kTorchVerbs.end();
}

}  // namespace lathe::app
