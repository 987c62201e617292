"""scikit-learn with two jobs."""

import multiprocessing
import sys

import joblib
import sklearn.datasets
import sklearn.ensemble
import sklearn.model_selection

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    data, labels = sklearn.datasets.load_iris(return_X_y=True)
    forest = sklearn.ensemble.RandomForestClassifier(n_estimators=10, random_state=1)
    alone = sklearn.model_selection.cross_val_score(forest, data, labels, cv=4)
    for backend in ["loky", "multiprocessing"]:
        with joblib.parallel_config(backend=backend):
            scores = sklearn.model_selection.cross_val_score(forest, data, labels, cv=4, n_jobs=2)
        assert (scores == alone).all()
    search = sklearn.model_selection.GridSearchCV(forest, {"max_depth": [1, 3]}, n_jobs=2).fit(data, labels)
    assert search.best_params_ == {"max_depth": 3}
    print("as expected")
