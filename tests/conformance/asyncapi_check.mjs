// Check an AsyncAPI document with the AsyncAPI project's own parser, and samples with the schemas in it.
//
//   node asyncapi_check.mjs DIRECTORY_OF_NODE_MODULES DOCUMENT.json SAMPLES.json
//
// SAMPLES: [[name of a schema, value], …]. Prints what is wrong as JSON: {"diagnostics": […], "samples": […]}.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [directory, file, samplesFile] = process.argv.slice(2);
const require = createRequire(join(directory, "/"));
const { Parser } = require("@asyncapi/parser");
const Ajv = require("ajv");

const text = readFileSync(file, "utf8");
const { document, diagnostics } = await new Parser().parse(text);

// The schemas as they are written, references and all: draft 7, which AsyncAPI's own schema extends.
const ajv = new Ajv({ strict: false, validateFormats: false });
ajv.addSchema({ components: JSON.parse(text).components }, "document");
const samples = JSON.parse(readFileSync(samplesFile, "utf8")).map(([name, value]) => {
  const valid = ajv.validate({ $ref: `document#/components/schemas/${name}` }, value);
  return [name, valid ? null : ajv.errorsText()];
});

const told = diagnostics.map(({ code, severity, message, path }) => ({ code, severity, message, path }));
const operations = document?.allOperations().all().length ?? 0;
console.log(JSON.stringify({ diagnostics: told, operations, samples }));
