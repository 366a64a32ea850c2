// Speaks for llama.cpp as `tinyllama bench --peer` wants it (the options and the JSON of llama.cpp's own llama-bench),
// where npm's node-llama-cpp is what is installed:
//   tinyllama bench -m MODEL.gguf --peer "node bench/peer/llama_bench.mjs" --peer-batched "node bench/peer/llama_bench.mjs"
// Options: -m MODEL, -p PROMPT,... , -n TOKENS, -d CONTEXT,... (what is cached before the tokens), -t THREADS, -r RUNS;
// or those of llama-batched-bench: -npl SEQUENCES,... , each with -npp TOKENS of its own, then -ntg more, all together.
import {createRequire} from "node:module";
import {dirname, join} from "node:path";
import {fileURLToPath, pathToFileURL} from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
const require = createRequire(join(root, "build", "peer", "package.json"));  // where tools/peer_check installs it
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);

const options = {"-m": "", "-p": "", "-n": "0", "-d": "0", "-t": "2", "-r": "3", "-o": "json",
    "-npl": "", "-npp": "128", "-ntg": "32", "-c": "0", "--output-format": "jsonl"};
for (let i = 2; i + 1 < process.argv.length; i += 2) {
    if (!(process.argv[i] in options)) throw new Error(`unknown option ${process.argv[i]}`);
    options[process.argv[i]] = process.argv[i + 1];
}
const numbers = (list) => list.split(",").filter(Boolean).map(Number);
const prompts = numbers(options["-p"]), contexts = numbers(options["-d"]);
const generated = Number(options["-n"]), threads = Number(options["-t"]), runs = Number(options["-r"]);

const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: threads});
const model = await llama.loadModel({modelPath: options["-m"]});
const tokens = (n) => Array.from({length: n}, (_, i) => 300 + (i * 7919 + 13) % 31000);
if (options["-npl"]) {
    await batched(numbers(options["-npl"]), Number(options["-npp"]), Number(options["-ntg"]));
    process.exit(0);
}

// A line of JSON for each number of sequences.
async function batched(counts, prompt, generated) {
    for (const count of counts) {
        const context = await model.createContext({
            contextSize: prompt + generated + 8, sequences: count, batchSize: Math.max(512, count), threads, flashAttention: true});
        const sequences = Array.from({length: count}, () => context.getSequence());
        await Promise.all(sequences.map((s) => s.evaluateWithoutGeneratingNewTokens(tokens(prompt))));
        const start = performance.now();
        await Promise.all(sequences.map(async (sequence) => {
            let left = generated;
            for await (const _ of sequence.evaluate([300], {temperature: 0, yieldEogToken: true})) if (--left === 0) break;
        }));
        const seconds = (performance.now() - start) / 1000;
        console.log(JSON.stringify({pp: prompt, tg: generated, pl: count, t_tg: seconds, speed_tg: count * generated / seconds}));
        await context.dispose();
    }
}

const contextSize = Math.max(...prompts, ...contexts.map((n) => n + generated), 16) + 8;
const context = await model.createContext({contextSize, batchSize: 512, threads, flashAttention: true});
const sequence = context.getSequence();
const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
const rows = [];

for (const n of prompts) {
    const speeds = [];
    for (let run = 0; run <= runs; run++) {
        await sequence.clearHistory();
        const start = performance.now();
        await sequence.evaluateWithoutGeneratingNewTokens(tokens(n));
        if (run > 0) speeds.push(n * 1000 / (performance.now() - start));  // the first one warms up
    }
    rows.push({n_prompt: n, n_gen: 0, n_depth: 0, avg_ts: median(speeds)});
}
for (const depth of generated > 0 ? contexts : []) {
    await sequence.clearHistory();
    if (depth > 1) await sequence.evaluateWithoutGeneratingNewTokens(tokens(depth - 1));
    const speeds = [];
    let last = performance.now(), count = 0;
    for await (const _ of sequence.evaluate([300], {temperature: 0, yieldEogToken: true})) {
        const now = performance.now();
        if (count++ > 0) speeds.push(1000 / (now - last));
        last = now;
        if (count > generated) break;
    }
    rows.push({n_prompt: 0, n_gen: generated, n_depth: depth, avg_ts: median(speeds)});
}
console.log(JSON.stringify(rows, null, 1));
process.exit(0);
