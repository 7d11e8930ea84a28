// What scores are called.

const NAMES = { contest: "score", r2: "R²", rmse: "RMSE", mae: "MAE", log_loss: "log-loss", f1: "F1" };

export const nameOfScore = name => NAMES[name] ?? name;
