// Compares `tinyllama logits` with llama.cpp (npm's node-llama-cpp) on one GGUF file, teacher-forced.
//   node llama_cpp.mjs PROGRAM MODEL.gguf IDS            distributions: KL divergence and top tokens
//   node llama_cpp.mjs PROGRAM MODEL.gguf IDS --greedy N greedy continuation, which must be equal
// Prints one JSON object and exits with 1 when a promise does not hold.
import {execFileSync} from "node:child_process";
import {mkdtempSync, readFileSync, rmSync} from "node:fs";
import {createRequire} from "node:module";
import {tmpdir} from "node:os";
import {join} from "node:path";
import {pathToFileURL} from "node:url";

// The peer is installed beside the build, not in the tree: resolve it from the working folder.
const require = createRequire(join(process.cwd(), "package.json"));
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);

const [program, modelPath, idList, mode, count] = process.argv.slice(2);
const ids = idList.split(",").map(Number);
const folder = mkdtempSync(join(tmpdir(), "peer-"));
process.on("exit", () => rmSync(folder, {recursive: true, force: true}));

// Our logits as rows of natural log-probabilities.
function ourLogprobs(...options) {
    const out = join(folder, "logits.safetensors");
    execFileSync(program, ["logits", "-m", modelPath, "--ids", idList, "--out", out, ...options]);
    const bytes = readFileSync(out);
    const headerLength = Number(bytes.readBigUInt64LE(0));
    const header = JSON.parse(bytes.subarray(8, 8 + headerLength).toString());
    const name = Object.keys(header).find((key) => key !== "__metadata__");
    const {shape: [rows, vocab], data_offsets: [begin, end]} = header[name];
    const data = new Float32Array(bytes.buffer.slice(bytes.byteOffset + 8 + headerLength + begin,
        bytes.byteOffset + 8 + headerLength + end));
    return Array.from({length: rows}, (_, row) => {
        const logits = data.subarray(row * vocab, (row + 1) * vocab);
        const max = logits.reduce((a, b) => Math.max(a, b), -Infinity);
        const logSum = max + Math.log(logits.reduce((sum, x) => sum + Math.exp(x - max), 0));
        return Float64Array.from(logits, (x) => x - logSum);
    });
}

const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({contextSize: ids.length + Number(count ?? 0) + 8, threads: 2});
const sequence = context.getSequence();

async function greedy() {
    const ours = JSON.parse(execFileSync(program, ["generate", "-m", modelPath, "--ids", idList, "-n", count,
        "--temperature", "0", "--json"]).toString()).ids;
    const theirs = [];
    let next = ids;
    while (theirs.length < ours.length) {
        const result = await sequence.controlledEvaluate(
            next.map((token, i) => i === next.length - 1 ? [token, {generateNext: {token: true, options: {temperature: 0}}}] : token));
        theirs.push(result.at(-1).next.token);
        next = [theirs.at(-1)];
    }
    const same = ours.findIndex((id, i) => id !== theirs[i]);
    return {tokens: ours.length, equal: same === -1, first_difference: same, ok: same === -1 && ours.length > 0};
}

async function distributions() {
    const ours = ourLogprobs();
    // How far honest roundings move our own log-probabilities: an FP32 cache instead of the default one. The
    // int8 roundings of every later layer then fall differently, as they do in another program.
    let bound = 0;
    ourLogprobs("--kv-type", "f32").forEach((row, i) => row.forEach((x, token) => {
        bound = Math.max(bound, Math.abs(x - ours[i][token]));
    }));
    const results = await sequence.controlledEvaluate(ids.map((token) => [token, {generateNext: {probabilities: true}}]));
    let klSum = 0, klMax = 0, worst = 0, decided = 0, disagreements = 0;
    results.forEach(({next}, row) => {
        let kl = 0, total = 0;
        for (const probability of next.probabilities.values()) total += probability;
        for (const [token, probability] of next.probabilities) {
            const logprob = ours[row][token], theirs = Math.log(probability / total);
            kl += Math.exp(logprob) * (logprob - theirs);
            worst = Math.max(worst, Math.abs(logprob - theirs));
        }
        klSum += kl;
        klMax = Math.max(klMax, kl);
        const order = Array.from(ours[row].keys()).sort((a, b) => ours[row][b] - ours[row][a]);
        const gap = ours[row][order[0]] - ours[row][order[1]];
        if (gap <= 2 * bound) return;
        decided++;
        const [top] = [...next.probabilities].reduce((best, entry) => entry[1] > best[1] ? entry : best);
        if (top !== order[0]) disagreements++;
    });
    return {rows: results.length, kl_mean: klSum / results.length, kl_max: klMax, largest_logprob_difference: worst,
        bound, rows_with_decided_top: decided, disagreements,
        ok: disagreements === 0 && results.length === ids.length && klMax < 0.01};
}

const result = mode === "--greedy" ? await greedy() : await distributions();
console.log(JSON.stringify({model: modelPath.split("/").at(-1), ...result}));
process.exit(result.ok ? 0 : 1);
