// node h5wasm.mjs STORE.h5 NAME...: what h5wasm, libhdf5 in WebAssembly, reads of each dataset, as JSON
import h5wasm from "h5wasm/node";
import { print } from "./print.mjs";

const [path, ...names] = process.argv.slice(2);
const library = await h5wasm.ready;
const file = new h5wasm.File(path, "r");

// `value` of h5wasm 0.10 has no arrays of 16-bit floats: the bytes that it would wrap in one
function rawBytes({ file_id, path, metadata }) {
  const nBytes = metadata.size * metadata.total_size;
  const place = library._malloc(nBytes);
  library.get_dataset_data(file_id, path, null, null, null, BigInt(place));
  return library.HEAPU8.slice(place, place + nBytes);
}

function read(name) {
  const dataset = file.get(name);
  const bytes = dataset.metadata.type === 1 && dataset.metadata.size === 2 ? rawBytes(dataset) : dataset.value;
  return { bytes, shape: dataset.shape, dims: dataset.get_dimension_labels() };
}

const attributes = Object.fromEntries(Object.entries(file.attrs).map(([name, attribute]) => [name, attribute.value]));
await print(attributes, names, read);
