// Days: as the catalog writes them, as numbers, and as round marks of an axis.

const DATE = /^(\d{4})[-/](\d{1,2})[-/](\d{1,2})$/,
  DAY_MS = 86_400_000;

export const isDate = value => typeof value === "string" && DATE.test(value);

/** Days since 1970 of a date, else NaN. */
export function day(text) {
  const found = DATE.exec(text ?? "");
  return found ? Date.UTC(found[1], found[2] - 1, found[3]) / DAY_MS : NaN;
}

export const dayText = days => new Date(Math.round(days) * DAY_MS).toISOString().slice(0, 10);

/** About `wanted` first days of months within [low, high]; few enough days are marked one by one. */
export function monthTicks(low, high, wanted) {
  const rough = (high - low) / Math.max(wanted, 1) / 30.4;
  if (rough < 0.5) return range(Math.ceil(low), high, Math.max(1, Math.ceil(30.4 * rough)));
  const step = [1, 2, 3, 6, 12].find(each => each >= rough) ?? 12 * Math.ceil(rough / 12),
    start = new Date(low * DAY_MS);
  const months = range(Math.floor((12 * start.getUTCFullYear() + start.getUTCMonth()) / step) * step, 12 * 4000, step, 400);
  return months.map(month => Date.UTC(Math.floor(month / 12), month % 12) / DAY_MS).filter(each => each >= low && each <= high);
}

const range = (from, to, step, most = 100) => Array.from({ length: most }, (_, i) => from + i * step).filter(each => each <= to);
